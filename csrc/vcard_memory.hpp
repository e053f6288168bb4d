// Blocks of the HOST driver, and of the pool that a thread is inside, as torch's data pointers; and the two allocators
// that hand them out.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Storage.h>

namespace poolrt::vcard {

// Puts the allocators in place of torch's: one for PrivateUse1, and one for the CPU that serves the host as before but
// gives the memory of a card to whatever a kernel of that card allocates.
void install_allocators();

c10::Allocator* card_allocator();  // allocates on the current card
c10::Allocator* cpu_allocator();

// A new block on `card`, or from the pool this thread is inside. Raises torch.OutOfMemoryError when that is full.
c10::DataPtr allocate_on_card(int card, std::size_t nbytes);

// One more owner of `storage`'s memory, under the name of `device`.
c10::DataPtr share_memory(const c10::Storage& storage, c10::Device device);

// Whether the memory came from the allocators here: no code of somebody else runs when its last owner is gone.
bool is_ours(const c10::DataPtr& memory);

// A watcher is told when memory is made on a card while side streams exist (true: this memory is to be watched), and
// when the tensors of watched memory are gone; aliases of it do not count.
struct Watcher {
  bool (*made)(int card, void* block);
  void (*freed)(void* block);
};
void set_watcher(const Watcher& watcher);
bool is_watched(const c10::DataPtr& memory);
void watch(const c10::DataPtr& memory);

// Whether the memory is a block of `card`, or none at all.
bool lives_on(const c10::StorageImpl& storage, int card);

// Replaces the memory of a card's storage by a block of `nbytes` on the same card and keeps what both have room for.
void resize_storage(c10::StorageImpl& storage, std::size_t nbytes);

}  // namespace poolrt::vcard
