#include "vmm.hpp"

#include <utility>

namespace poolrt {

void CountedDriver::report_lost(int status) const {
  lost_.fetch_add(1, std::memory_order_relaxed);
  last_lost_status_.store(status, std::memory_order_relaxed);
}

// ---- Reservation

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  Reservation taken(std::move(other));
  swap(taken);
  return *this;
}

Reservation::~Reservation() {
  if (const int status = close()) driver_->report_lost(status);
}

int Reservation::open(const CountedDriver& driver, std::size_t nbytes, std::size_t alignment) {
  Address address = 0;
  if (const int status = driver->range_reserve(nbytes, alignment, &address)) return status;
  driver_ = &driver;
  address_ = address;
  nbytes_ = nbytes;
  return kSuccess;
}

int Reservation::close() {
  if (empty()) return kSuccess;
  if (const int status = (*driver_)->range_free(address_, nbytes_)) return status;
  address_ = 0;
  nbytes_ = 0;
  return kSuccess;
}

void Reservation::swap(Reservation& other) noexcept {
  std::swap(driver_, other.driver_);
  std::swap(address_, other.address_);
  std::swap(nbytes_, other.nbytes_);
}

// ---- Allocation

Allocation& Allocation::operator=(Allocation&& other) noexcept {
  Allocation taken(std::move(other));
  swap(taken);
  return *this;
}

Allocation::~Allocation() {
  if (const int status = close()) driver_->report_lost(status);
}

int Allocation::open(const CountedDriver& driver, int place, std::size_t nbytes) {
  Pages pages = 0;
  if (const int status = driver->pages_create(place, nbytes, &pages)) return status;
  driver_ = &driver;
  pages_ = pages;
  return kSuccess;
}

int Allocation::close() {
  if (empty()) return kSuccess;
  if (const int status = (*driver_)->pages_release(pages_)) return status;
  pages_ = 0;
  return kSuccess;
}

void Allocation::swap(Allocation& other) noexcept {
  std::swap(driver_, other.driver_);
  std::swap(pages_, other.pages_);
}

// ---- Mapping

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  Mapping taken(std::move(other));
  swap(taken);
  return *this;
}

Mapping::~Mapping() {
  if (const int status = close()) driver_->report_lost(status);
}

int Mapping::open(const CountedDriver& driver, Address at, std::size_t nbytes, Pages pages) {
  if (const int status = driver->map(at, nbytes, pages)) return status;
  driver_ = &driver;
  address_ = at;
  nbytes_ = nbytes;
  return kSuccess;
}

int Mapping::close() {
  if (empty()) return kSuccess;
  if (const int status = (*driver_)->unmap(address_, nbytes_)) return status;
  address_ = 0;
  nbytes_ = 0;
  return kSuccess;
}

void Mapping::swap(Mapping& other) noexcept {
  std::swap(driver_, other.driver_);
  std::swap(address_, other.address_);
  std::swap(nbytes_, other.nbytes_);
}

}  // namespace poolrt
