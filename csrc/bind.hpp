// What the files that make up the Python module share.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace poolrt {

// poolrt.errors.DriverError with the attributes code and name.
[[noreturn]] void raise_driver_error(const std::string& message, int code, const std::string& name);

void bind_pool(pybind11::module_& module);

// Adds the links of the HOST driver.
void bind_links(pybind11::module_& module);

}  // namespace poolrt
