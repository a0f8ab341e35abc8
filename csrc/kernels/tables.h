// What codes that are places in a table stand for.
#pragma once

namespace hotset {
namespace {

template <int... values>
struct Values {
  static constexpr float kFloats[] = {float(values)...};
};

using Uneven = Values<-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113>;  // IQ4
// Floats of four bits (one of mantissa), doubled.
using Fp4 = Values<0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12>;

// What stands for no number among NVFP4's scales, and is read as zero.
constexpr unsigned char kFp8NaN = 0x7f;

// Of types with codebooks, in units of which a scale has eight: magnitudes, then their negatives; of IQ1 -1,
// 0 and 1, an eighth more, then an eighth less.
using Book2 = Values<8, 25, 43, 0, -8, -25, -43, 0>;
using Book3_XXS = Values<8, 24, 40, 56, 72, 88, 104, 124, -8, -24, -40, -56, -72, -88, -104, -124>;
using Book3_S = Values<8, 24, 40, 56, 72, 88, 104, 120, -8, -24, -40, -56, -72, -88, -104, -120>;
using Book1 = Values<-7, 1, 9, 0, -9, -1, 7, 0>;

}  // namespace
}  // namespace hotset
