#pragma once

namespace poolrt::vcard {

// Gives torch's autograd engine a thread for every card there can be. It makes its threads once, at the first backward
// of the process, for the devices known then; one that ran before the cards were there has none for them.
// To be called after some backward has run, and while none runs.
void grow_autograd();

}  // namespace poolrt::vcard
