// Making, moving, viewing and renaming memory. Views are metadata only, so torch's own functions serve them.
#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include "vcard_alias.hpp"
#include "vcard_card.hpp"
#include "vcard_copy.hpp"
#include "vcard_hazards.hpp"
#include "vcard_memory.hpp"
#include "vcard_operators.hpp"

namespace poolrt::vcard {
namespace {

using at::Tensor;
using c10::Device;
using c10::IntArrayRef;
using c10::Layout;
using c10::MemoryFormat;
using c10::ScalarType;

// ---- making

constexpr c10::DispatchKeySet kCardTensor(c10::DispatchKey::PrivateUse1);

// Makes the asked card current for one allocation.
class OnCard {
 public:
  explicit OnCard(std::optional<Device> device) : outer_(current_card()) {
    const int card = device && device->has_index() ? device->index() : outer_;
    check_ordinal(card);
    set_current_card(card);
  }
  OnCard(const OnCard&) = delete;
  OnCard& operator=(const OnCard&) = delete;
  ~OnCard() { set_current_card(outer_); }

 private:
  int outer_;
};

ScalarType or_default(std::optional<ScalarType> dtype) {
  return dtype.value_or(c10::typeMetaToScalarType(c10::get_default_dtype()));
}

Tensor empty(IntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout>, std::optional<Device> device,
             std::optional<bool>, std::optional<MemoryFormat> format) {
  const OnCard card(device);
  return at::detail::empty_generic(size, card_allocator(), kCardTensor, or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<ScalarType> dtype, std::optional<Layout>,
                     std::optional<Device> device, std::optional<bool>) {
  const OnCard card(device);
  return at::detail::empty_strided_generic(size, stride, card_allocator(), kCardTensor, or_default(dtype));
}

// Autograd marks gradients that are zero with it; plain zeros are the same number.
Tensor efficient_zero_tensor(c10::SymIntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout>,
                             std::optional<Device> device, std::optional<bool>) {
  return at::zeros_symint(size, at::TensorOptions().dtype(dtype).device(device));
}

// ---- moving

Tensor copy_from(const Tensor& source, const Tensor& target, bool non_blocking) {
  for (const Tensor& tensor : {source, target}) {
    TORCH_CHECK(tensor.device().type() == kVcard || tensor.device().is_cpu(), "copy_: no copy between ",
                source.device(), " and ", target.device());
  }
  copy_over_link(source, target, non_blocking);
  return target;
}

Tensor copy_from_and_resize(const Tensor& source, const Tensor& target) {
  target.resize_(source.sizes());
  return copy_from(source, target, false);
}

void record_stream(Tensor& tensor, c10::Stream stream) {
  if (hazards_are_watched()) note_allowed(tensor.storage().data_ptr(), stream);
}

// ---- renaming

Tensor& set_storage_with_offset(Tensor& self, c10::Storage source, int64_t offset, IntArrayRef size,
                                IntArrayRef stride) {
  TORCH_CHECK(source.device() == self.device(), "set_: the tensor is on ", self.device(), " but the storage is on ",
              source.device());
  at::native::checkSetStorage(self, source, offset, size, stride);
  c10::TensorImpl& impl = *self.unsafeGetTensorImpl();
  if (stride.data() == nullptr) {
    impl.set_storage_offset(offset);
    impl.set_sizes_contiguous(size);
  } else {
    impl.set_sizes_and_strides(size, stride, offset);
  }
  const auto needed = at::detail::computeStorageNbytes(impl.sizes(), impl.strides(), self.itemsize(), offset);
  if (needed > self.storage().nbytes()) resize_storage(*self.storage().unsafeGetStorageImpl(), needed);
  return self;
}

Tensor& set_storage(Tensor& self, c10::Storage source) {
  const auto numel = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_storage_with_offset(self, std::move(source), 0, {numel}, {1});
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage_with_offset(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

Tensor& set_to_nothing(Tensor& self) {
  c10::Storage nothing(c10::Storage::use_byte_size_t(), 0, allocate_on_card(self.device().index(), 0), card_allocator(),
                       /*resizable=*/true);
  return set_storage_with_offset(self, std::move(nothing), 0, {0}, {});
}

// Lets Module.to() move a parameter's data between the CPU and a card: the Parameter object and its ties stay.
bool has_compatible_shallow_copy_type(const Tensor& self, const Tensor& from) {
  return self.layout() == c10::kStrided && from.layout() == c10::kStrided;
}

}  // namespace

void register_memory_operators(torch::Library& aten) {
  aten.impl("empty.memory_format", TORCH_FN(empty));
  aten.impl("empty_strided", TORCH_FN(empty_strided));
  aten.impl("_efficientzerotensor", TORCH_FN(efficient_zero_tensor));

  aten.impl("_copy_from", TORCH_FN(copy_from));
  aten.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  aten.impl("record_stream", TORCH_FN(record_stream));

  aten.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  aten.impl("view", TORCH_FN(at::native::view));
  aten.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  aten.impl("unfold", TORCH_FN(at::native::unfold));
  aten.impl("view_as_real", TORCH_FN(at::native::view_as_real));
  aten.impl("view_as_complex", TORCH_FN(at::native::view_as_complex));

  aten.impl("set_.source_Storage", TORCH_FN(set_storage));
  aten.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage_with_offset));
  aten.impl("set_.source_Tensor", TORCH_FN(set_tensor));
  aten.impl("set_", TORCH_FN(set_to_nothing));
  aten.impl("_has_compatible_shallow_copy_type", TORCH_FN(has_compatible_shallow_copy_type));
}

}  // namespace poolrt::vcard
