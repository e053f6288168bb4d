"""Operators of torch's own list that a virtual card does not do as the CPU does, each with the reason.

A name is as in torch.testing's op_db, with the variant after a dot. An entry whose operator starts to agree fails the
test, so this list says what is true.
"""

GPU_ONLY = "compiles a CUDA kernel at run time: torch has it on GPUs only, the CPU refuses it too"
SPARSE = "takes or gives a sparse tensor: a virtual card holds strided tensors only and says so"
HOST_ARGUMENT = "torch wants the indices on the host whatever the device: the sample puts them on the card"
LARGER_BUFFER = "the sample is a window into a larger buffer, which a copy to a card does not carry along"

EXCEPTIONS: dict[str, str] = {
    "as_strided.partial_views": LARGER_BUFFER,
    "jiterator_2inputs_2outputs": GPU_ONLY,
    "jiterator_4inputs_with_extra_args": GPU_ONLY,
    "jiterator_binary": GPU_ONLY,
    "jiterator_binary_return_by_ref": GPU_ONLY,
    "jiterator_unary": GPU_ONLY,
    "sparse.mm.reduce": SPARSE,
    "sparse.sampled_addmm": SPARSE,
    "tensor_split": HOST_ARGUMENT,
    "to_sparse": SPARSE,
}

ROUNDED: dict[str, str] = {
    "linalg.lstsq": "its default LAPACK driver, gelsy, is not stable to the bit on the CPU itself",
    "linalg.lstsq.grad_oriented": "as linalg.lstsq",
}
"""Compared to fp32 accuracy instead of to the bit."""

VALUELESS: dict[str, str] = dict.fromkeys(
    ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"),
    "returns memory nobody has written to",
)
"""Compared by shape, strides, type and device: there are no values to compare."""
