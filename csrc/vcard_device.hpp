#pragma once

namespace poolrt::vcard {

// Registers the device guard and the hooks with torch. To be called once.
void install_device();

}  // namespace poolrt::vcard
