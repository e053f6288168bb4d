// Objects by their handles: numbers that are never used twice, so a handle that was destroyed is recognised for ever.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>

namespace poolrt::host_driver {

inline std::atomic<std::uintptr_t> last_handle{0};  // one count for all kinds: none passes for another

template <typename Object>
class Handles {
 public:
  using Pointer = std::shared_ptr<Object>;

  void* add(Pointer object) {
    void* handle = reinterpret_cast<void*>(++last_handle);
    objects_.emplace(handle, std::move(object));
    return handle;
  }

  Pointer find(void* handle) const {
    const auto found = objects_.find(handle);
    return found == objects_.end() ? nullptr : found->second;
  }

  bool erase(void* handle) { return objects_.erase(handle) == 1; }
  std::size_t size() const { return objects_.size(); }
  auto begin() const { return objects_.begin(); }
  auto end() const { return objects_.end(); }

 private:
  std::unordered_map<void*, Pointer> objects_;
};

}  // namespace poolrt::host_driver
