// Which sets of kernels this build has, and which of them this CPU runs.
#include <vector>

#include "kernels/codebooks.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

namespace hotset {

#define HOTSET_KERNELS(level)                 \
  extern const LinearKernels linear_##level;  \
  extern const VectorKernels vector_##level;  \
  extern const NeuronKernels neurons_##level; \
  static const Kernels level = {#level, &linear_##level, &vector_##level, &neurons_##level}

#if defined(__x86_64__) || defined(_M_X64)

HOTSET_KERNELS(x86_64_v2);
HOTSET_KERNELS(avx2);
HOTSET_KERNELS(avx512);

namespace {

struct Cpuid {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Cpuid cpuid(unsigned leaf) {
  Cpuid r;
  __get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx);  // leaves zeros where the CPU has no such leaf
  return r;
}

bool has(unsigned word, unsigned bits) { return (word & bits) == bits; }

// The registers that the operating system saves and restores.
unsigned saved_state() {
  unsigned eax, edx;
  __asm__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return eax;
}

// Levels as the x86-64 psABI defines them, each with the support that it needs from the operating system.
int find_kernels(const Kernels** found) {
  const Cpuid basic = cpuid(1), extended = cpuid(7), amd = cpuid(0x80000001);
  const bool v2 =
      has(basic.ecx, bit_SSE3 | bit_SSSE3 | bit_CMPXCHG16B | bit_SSE4_1 | bit_SSE4_2 | bit_POPCNT) &&
      has(amd.ecx, bit_LAHF_LM);
  const unsigned state = has(basic.ecx, bit_OSXSAVE) ? saved_state() : 0;
  const bool v3 = v2 && has(state, 0x06) && has(basic.ecx, bit_AVX | bit_FMA | bit_F16C | bit_MOVBE) &&
                  has(extended.ebx, bit_AVX2 | bit_BMI | bit_BMI2) && has(amd.ecx, bit_LZCNT);
  const bool v4 =
      v3 && has(state, 0xe6) &&
      has(extended.ebx, bit_AVX512F | bit_AVX512DQ | bit_AVX512CD | bit_AVX512BW | bit_AVX512VL) &&
      has(extended.ecx, bit_AVX512VNNI);
  int n = 0;
  if (v4) found[n++] = &avx512;
  if (v3) found[n++] = &avx2;
  if (v2) found[n++] = &x86_64_v2;
  return n;
}

}  // namespace

#else

HOTSET_KERNELS(neon);
HOTSET_KERNELS(neon_dotprod);

namespace {

bool has_dotprod() {
#if defined(__APPLE__)
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value != 0;
#elif defined(_WIN32)
  constexpr DWORD kDotProduct = 43;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE, which older SDKs do not name
  return IsProcessorFeaturePresent(kDotProduct) != 0;
#elif defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#else
  return false;
#endif
}

int find_kernels(const Kernels** found) {
  int n = 0;
  if (has_dotprod()) found[n++] = &neon_dotprod;
  found[n++] = &neon;
  return n;
}

}  // namespace

#endif

const Kernels* const* available_kernels() {
  struct List {
    const Kernels* kernels[4] = {};
    List() { find_kernels(kernels); }
  };
  static const List list;
  return list.kernels;
}

template <class Book>
static std::vector<uint8_t> entries_of;

int64_t codebook_bytes(Type type) {
  int64_t bytes = 0;
  with_book(type, [&](auto book) { bytes = book.kEntries * book.kEntry; });
  return bytes;
}

void set_codebook(Type type, const uint8_t* entries) {
  with_book(type, [=](auto book) {
    auto& kept = entries_of<decltype(book)>;
    if (!kept.empty()) return;
    kept.assign(entries, entries + codebook_bytes(type));
    for (auto kernels = available_kernels(); *kernels; kernels++) {
      (*kernels)->linear->set_codebook(type, kept.data());
    }
  });
}

const uint8_t* codebook_of(Type type) {
  const uint8_t* entries = nullptr;
  with_book(type, [&](auto book) {
    const auto& kept = entries_of<decltype(book)>;
    if (!kept.empty()) entries = kept.data();
  });
  return entries;
}

}  // namespace hotset
