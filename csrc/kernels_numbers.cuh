// The numbers that torch stores, their conversions and their sums, bit for bit as torch does them on a CPU.
//
// No header is needed, so NVRTC compiles this; and g++ does too, for the tests that run the kernels as host code.
// A type has torch's name. NaN stays NaN, which one is left to the hardware; a float outside the range of an integer
// has no defined value, as in C++ and torch.

using int8 = signed char;
using int16 = short;
using int32 = int;
using int64 = long long;
using uint8 = unsigned char;
using uint32 = unsigned int;
using float32 = float;
using float64 = double;

// Same-type copies know no numbers, only words of memory.
using word8 = unsigned char;
using word16 = unsigned short;
using word32 = unsigned int;
using word64 = unsigned long long;
struct alignas(16) word128 {
  word64 low, high;
};

struct float16 {
  word16 bits;
};
struct bfloat16 {
  word16 bits;
};
struct alignas(8) complex64 {
  using Part = float32;
  Part real, imaginary;
};
struct alignas(16) complex128 {
  using Part = float64;
  Part real, imaginary;
};

template <typename A, typename B>
struct Same {
  static constexpr bool value = false;
};
template <typename A>
struct Same<A, A> {
  static constexpr bool value = true;
};
template <typename Number, typename... Names>
constexpr bool one_of = (Same<Number, Names>::value || ...);
template <typename Number>
constexpr bool is_complex = one_of<Number, complex64, complex128>;
template <typename Number>
constexpr bool is_half = one_of<Number, float16, bfloat16>;
template <typename Number>
constexpr bool is_integer = one_of<Number, int8, int16, int32, int64, uint8>;

__device__ inline uint32 bits_of(float32 value) {
  union {
    float32 number;
    uint32 bits;
  } both = {value};
  return both.bits;
}

__device__ inline float32 float_of(uint32 bits) {
  union {
    uint32 bits;
    float32 number;
  } both = {bits};
  return both.number;
}

__device__ inline float32 widen(bfloat16 half) { return float_of(static_cast<uint32>(half.bits) << 16); }

//   sign | exponent 5, bias 15 | fraction 10      ->      sign | exponent 8, bias 127 | fraction 23
__device__ inline float32 widen(float16 half) {
#ifdef __CUDA_ARCH__
  float32 single;
  asm("cvt.f32.f16 %0, %1;" : "=f"(single) : "h"(half.bits));
  return single;
#else
  const uint32 sign = static_cast<uint32>(half.bits & 0x8000u) << 16;
  const uint32 magnitude = half.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude < 0x0400u) {  // subnormal: a whole number of 2^-24
    return float_of(sign | bits_of(static_cast<float32>(magnitude) * float_of((127u - 24u) << 23)));
  }
  return float_of(sign | ((magnitude << 13) + ((127u - 15u) << 23)));
#endif
}

// Round to nearest, ties to even: the half of what is cut off, less one unless the last bit that stays is odd, is
// added first.
template <typename Half>
__device__ inline Half narrow(float32 single) {
  const uint32 bits = bits_of(single);
  const uint32 magnitude = bits & 0x7fffffffu;
  if constexpr (Same<Half, bfloat16>::value) {
    if (magnitude > 0x7f800000u) return {static_cast<word16>(0x7fc0u)};
    return {static_cast<word16>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
  } else {
#ifdef __CUDA_ARCH__
    word16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(single));
    return {half};
#else
    const uint32 sign = bits >> 16 & 0x8000u;
    if (magnitude > 0x7f800000u) return {static_cast<word16>(sign | 0x7e00u)};
    if (magnitude >= (127u + 16u) << 23) return {static_cast<word16>(sign | 0x7c00u)};  // 65536 and more
    if (magnitude >= (127u - 14u) << 23) {
      const uint32 rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u) - ((127u - 15u) << 23);
      return {static_cast<word16>(sign | rounded >> 13)};
    }
    if (magnitude < (127u - 25u) << 23) return {static_cast<word16>(sign)};
    const uint32 fraction = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32 cut = 126u - (magnitude >> 23);  // 14 to 24 bits of the fraction are below 2^-24
    const uint32 rounded = fraction + (1u << (cut - 1)) - 1u + (fraction >> cut & 1u);
    return {static_cast<word16>(sign | rounded >> cut)};
#endif
  }
}

// As Tensor.copy_: by way of float for the half types, the real part of complex numbers, anything but zero is true.
template <typename To, typename From>
__device__ inline To convert(From value) {
  if constexpr (Same<To, From>::value) {
    return value;
  } else if constexpr (is_complex<From>) {
    if constexpr (is_complex<To>) {
      using Part = typename To::Part;
      return {static_cast<Part>(value.real), static_cast<Part>(value.imaginary)};
    } else if constexpr (Same<To, bool>::value) {
      return value.real != 0 || value.imaginary != 0;
    } else {
      return convert<To>(value.real);
    }
  } else if constexpr (is_complex<To>) {
    return {convert<typename To::Part>(value), 0};
  } else if constexpr (is_half<From>) {
    return convert<To>(widen(value));
  } else if constexpr (is_half<To>) {
    return narrow<To>(static_cast<float32>(value));
  } else if constexpr (Same<To, bool>::value) {
    return value != 0;
  } else if constexpr (Same<To, uint8>::value && one_of<From, float32, float64>) {
    return static_cast<uint8>(static_cast<int64>(value));  // torch: -1.0 becomes 255
  } else {
    return static_cast<To>(value);
  }
}

// As Tensor.add_ within one type: half types by way of float, integers wrap, bool is "or". Complex numbers part by
// part; torch multiplies by one first, which makes NaN of a complex infinity.
template <typename Number>
__device__ inline Number sum(Number a, Number b) {
  if constexpr (Same<Number, bool>::value) {
    return a || b;
  } else if constexpr (is_half<Number>) {
    return narrow<Number>(widen(a) + widen(b));
  } else if constexpr (is_complex<Number>) {
    return {a.real + b.real, a.imaginary + b.imaginary};
  } else if constexpr (is_integer<Number>) {
    return static_cast<Number>(static_cast<word64>(a) + static_cast<word64>(b));
  } else {
    return a + b;
  }
}
