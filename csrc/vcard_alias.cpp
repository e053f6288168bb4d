#include "vcard_alias.hpp"

#include <cstring>
#include <utility>

#include "vcard_card.hpp"
#include "vcard_memory.hpp"

namespace poolrt::vcard {
namespace {

void copy_geometry(const c10::TensorImpl& from, c10::TensorImpl& to) {
  to.set_sizes_and_strides(from.sizes(), from.strides(), from.storage_offset());
}

at::Tensor renamed(const at::Tensor& tensor, c10::Storage storage, c10::DispatchKey key) {
  const c10::TensorImpl& from = *tensor.unsafeGetTensorImpl();
  auto impl = c10::make_intrusive<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), from.dtype());
  copy_geometry(from, *impl);
  if (C10_UNLIKELY(from.is_wrapped_number())) impl->set_wrapped_number(true);
  at::Tensor named(std::move(impl));
  if (C10_UNLIKELY(tensor.is_conj())) named._set_conj(true);
  if (C10_UNLIKELY(tensor.is_neg())) named._set_neg(true);
  return named;
}

c10::Storage storage_of(std::size_t nbytes, c10::DataPtr memory) {
  return c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), nbytes, std::move(memory),
                                               cpu_allocator(), /*resizable=*/true);
}

}  // namespace

at::Tensor cpu_alias(const at::Tensor& tensor, const at::Tensor* sibling_alias) {
  const c10::Storage& storage = tensor.unsafeGetTensorImpl()->unsafe_storage();
  return renamed(tensor,
                 sibling_alias != nullptr ? sibling_alias->storage()
                                          : storage_of(storage.nbytes(), share_memory(storage, c10::Device(c10::kCPU))),
                 c10::DispatchKey::CPU);
}

at::Tensor card_view(const at::Tensor& result, c10::Storage storage) {
  return renamed(result, std::move(storage), c10::DispatchKey::PrivateUse1);
}

at::Tensor adopt(const at::Tensor& result, int card) {
  const c10::Storage& storage = result.unsafeGetTensorImpl()->unsafe_storage();
  if (C10_UNLIKELY(!lives_on(*storage.unsafeGetStorageImpl(), card))) {
    c10::DataPtr block = allocate_on_card(card, storage.nbytes());
    std::memcpy(block.get(), storage.data(), storage.nbytes());
    return card_view(result, storage_of(storage.nbytes(), std::move(block)));
  }
  if (C10_UNLIKELY(storage.use_count() != 1)) {  // the CPU keeps using it: another owner of the same memory
    return card_view(result, storage_of(storage.nbytes(), share_memory(storage, device_of(card))));
  }
  storage.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().unsafe_set_device(device_of(card));
  return card_view(result, storage);
}

void follow_writes(const at::Tensor& alias, const at::Tensor& tensor) {
  c10::StorageImpl& written = *alias.storage().unsafeGetStorageImpl();
  c10::StorageImpl& storage = *tensor.storage().unsafeGetStorageImpl();
  if (C10_UNLIKELY(written.data() != storage.data() || written.nbytes() != storage.nbytes())) {
    storage.set_data_ptr_noswap(share_memory(alias.storage(), storage.device()));
    storage.set_nbytes(written.nbytes());
  }
  const c10::TensorImpl& from = *alias.unsafeGetTensorImpl();
  c10::TensorImpl& to = *tensor.unsafeGetTensorImpl();
  if (from.sizes() != to.sizes() || from.strides() != to.strides() || from.storage_offset() != to.storage_offset()) {
    copy_geometry(from, to);
  }
}

}  // namespace poolrt::vcard
