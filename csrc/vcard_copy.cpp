//     with the source card's stream s, the target card's stream t:
//
//     s    | wait for t's work so far | copy | event |                 a copy from card to card, as aten makes it
//     t    ... work so far |                         | wait | ...
#include "vcard_copy.hpp"

#include <cstddef>
#include <memory>
#include <optional>

#include "vcard_alias.hpp"
#include "vcard_card.hpp"
#include "vcard_hazards.hpp"
#include "vcard_memory.hpp"
#include "vcard_streams.hpp"

namespace poolrt::vcard {
namespace {

using at::Tensor;

int place_of(const Tensor& tensor) { return tensor.device().type() == kVcard ? tensor.device().index() : kHostMemory; }

Tensor as_cpu(const Tensor& tensor) { return tensor.device().type() == kVcard ? cpu_alias(tensor) : tensor; }

// All of it is host memory, so the CPU's own copy does it.
void copy_now(const Tensor& source, const Tensor& target) {
  const BornOn birth(place_of(target));
  as_cpu(target).copy_(as_cpu(source));
}

// Byte `byte` of the tensor's elements in order, wherever its strides have put it.
void falsify(const Tensor& tensor, std::size_t byte) {
  const auto itemsize = tensor.itemsize();
  auto element = static_cast<int64_t>(byte) / itemsize;
  int64_t offset = 0;
  for (int64_t dim = tensor.dim() - 1; dim >= 0; --dim) {
    offset += element % tensor.size(dim) * tensor.stride(dim);
    element /= tensor.size(dim);
  }
  auto* bytes = static_cast<unsigned char*>(tensor.mutable_data_ptr()) + offset * itemsize;
  bytes[static_cast<int64_t>(byte) % itemsize] ^= 0xff;
}

// One copy between two places, as a way for bytes and for order.
class Crossing {
 public:
  Crossing(const Tensor& source, const Tensor& target)
      : source_(source), target_(target), from_(place_of(source)), to_(place_of(target)) {}

  bool has_side_stream() const {
    return side_streams_exist.load(std::memory_order_relaxed) && is_side(current_stream(leading_card()));
  }

  // Only bytes as they lie can be left to another thread, and only memory whose owners this library counts: an array
  // of somebody else may have to be given back under the interpreter's lock.
  bool can_be_queued() const {
    return source_.scalar_type() == target_.scalar_type() && source_.sizes() == target_.sizes() &&
           source_.strides() == target_.strides() && source_.is_non_overlapping_and_dense() &&
           source_.is_conj() == target_.is_conj() && source_.is_neg() == target_.is_neg() && source_.numel() != 0 &&
           is_ours(source_.storage().data_ptr()) && is_ours(target_.storage().data_ptr());
  }

  void queue() const {
    const c10::Stream stream = current_stream(leading_card());
    const std::optional<c10::Stream> other = other_cards_stream();
    if (other) wait_and_note(stream, *other);
    note_uses(stream);
    auto memory = std::make_unique<Memory>(
        Memory{share_memory(source_.storage(), source_.device()), share_memory(target_.storage(), target_.device())});
    StreamCopy copy{};
    copy.source = from_;
    copy.target = to_;
    copy.to = target_.mutable_data_ptr();
    copy.from = source_.const_data_ptr();
    copy.nbytes = source_.nbytes();
    copy.done = [](void* memory) { delete static_cast<Memory*>(memory); };
    copy.context = memory.release();
    const int status = host().stream_copy(stream.device_index(), handle_of(stream), &copy);
    if (status == kInvalidDevice || status == kInvalidHandle) copy.done(copy.context);  // it was not taken
    TORCH_CHECK(status == kSuccess, "vcard: a copy could not be queued: ", host().driver.status_name(status));
    if (other) wait_and_note(*other, stream);
  }

  void make_now(bool non_blocking) const {
    if (hazards_are_watched()) drain_streams(non_blocking);
    LinkPassage passage{0, kNoByte};
    const bool crosses = from_ != to_ && target_.numel() != 0;
    const int status = crosses ? host().link_begin(from_, to_, target_.nbytes(), &passage) : kSuccess;
    if (C10_UNLIKELY(status == kLinkFailed)) raise_link_failed({from_, to_, target_.nbytes()});
    copy_now(source_, target_);
    if (C10_UNLIKELY(passage.wrong_byte != kNoByte)) falsify(target_, passage.wrong_byte);
    if (C10_UNLIKELY(passage.arrival_ns != 0)) wait_for_arrival(passage);
  }

 private:
  // Nothing is in the streams then; the notes are of what would be done on GPUs.
  void drain_streams(bool non_blocking) const {
    const c10::Stream stream = current_stream(leading_card());
    const std::optional<c10::Stream> other = other_cards_stream();
    drain_stream(stream);
    if (other) drain_stream(*other);
    if (other) note_waited(stream, *other);
    note_uses(stream);
    if (other) note_waited(*other, stream);
    if (!other && from_ != to_ && !non_blocking) note_finished(stream);
  }

  static void wait_and_note(const c10::Stream& waiting, const c10::Stream& awaited) {
    note_waited(waiting, awaited);
    wait_for_stream(waiting, awaited);
  }

  void note_uses(const c10::Stream& stream) const {
    if (from_ != kHostMemory) note_use(source_, stream);
    if (to_ != kHostMemory) note_use(target_, stream);
  }

  struct Memory {
    c10::DataPtr source;
    c10::DataPtr target;
  };

  int leading_card() const { return from_ != kHostMemory ? from_ : to_; }

  std::optional<c10::Stream> other_cards_stream() const {
    return from_ != kHostMemory && to_ != kHostMemory && from_ != to_ ? std::optional(current_stream(to_))
                                                                      : std::nullopt;
  }

  const Tensor& source_;
  const Tensor& target_;
  int from_;
  int to_;
};

}  // namespace

void copy_over_link(const Tensor& source, const Tensor& target, bool non_blocking) {
  const Crossing crossing(source, target);
  if (C10_UNLIKELY(non_blocking && crossing.has_side_stream() && crossing.can_be_queued())) {
    crossing.queue();
  } else {
    crossing.make_now(non_blocking);
  }
}

}  // namespace poolrt::vcard
