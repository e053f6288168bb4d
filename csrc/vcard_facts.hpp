// What the kernel of an operator must know of its schema, read once when the kernel is registered.
#pragma once

#include <ATen/core/function_schema.h>
#include <c10/util/SmallVector.h>

#include <string>

namespace poolrt::vcard {

enum class Kind : unsigned char { kOther, kTensor, kTensorList, kOptionalTensorList, kDevice, kGenerator };

struct ArgumentFacts {
  Kind kind;
  bool written;       // the kernel writes to it
  bool host_allowed;  // a CPU tensor may be given along with the card's: indices, lengths of packed sequences
};

struct OperatorFacts {
  explicit OperatorFacts(const c10::FunctionSchema& schema);

  bool has(Kind kind) const;

  std::string name;
  c10::SmallVector<ArgumentFacts, 8> arguments;
  c10::SmallVector<Kind, 4> returns;
  bool draws;       // takes a generator
  bool writes;      // writes to one of its arguments
  bool over_lists;  // one of torch's _foreach operators
};

}  // namespace poolrt::vcard
