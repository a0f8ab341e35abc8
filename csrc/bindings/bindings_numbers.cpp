// The numbers of the native enumerations by name, so that Python looks them up and never counts itself.
#include <nanobind/nanobind.h>

#include <initializer_list>
#include <utility>

#include "kernels/kernels.h"
#include "layers/neuron_ffn.h"
#include "layers/router.h"

namespace nb = nanobind;
using namespace hotset;

namespace {

template <class E>
nb::dict numbers(std::initializer_list<std::pair<const char*, E>> names) {
  nb::dict by_name;
  for (const auto& [name, value] : names) by_name[name] = static_cast<int>(value);
  return by_name;
}

}  // namespace

void bind_numbers(nb::module_& m) {
  m.attr("ACTIVATIONS") = numbers<Activation>({{"relu", Activation::kRelu},
                                               {"drelu", Activation::kDrelu},
                                               {"relu2", Activation::kRelu2},
                                               {"silu", Activation::kSilu},
                                               {"gelu", Activation::kGelu},
                                               {"gelu_tanh", Activation::kGeluTanh},
                                               {"swiglu_clamped", Activation::kSwigluClamped}});
  m.attr("WAYS") = numbers<Way>({{"dense", Way::kDense},
                                 {"exact", Way::kExact},
                                 {"threshold", Way::kThreshold},
                                 {"predictor", Way::kPredictor}});
  m.attr("SCORES") = numbers<Score>({{"none", Score::kNone},
                                     {"gate", Score::kGate},
                                     {"down", Score::kDown},
                                     {"low_rank", Score::kLowRank},
                                     {"low_rank_relu", Score::kLowRankRelu},
                                     {"copy", Score::kCopy}});
  m.attr("GATINGS") = numbers<Gating>(
      {{"softmax", Gating::kSoftmax}, {"sigmoid", Gating::kSigmoid}, {"selected", Gating::kSelected}});
  m.attr("KV_TYPES") = numbers<KvType>({{"f32", KvType::kF32}, {"f16", KvType::kF16}, {"q8_0", KvType::kQ8}});
  m.attr("TENSOR_TYPES") = numbers<Type>({{"F32", kF32},     {"F16", kF16},         {"BF16", kBF16},
                                          {"Q4_0", kQ4_0},   {"Q4_1", kQ4_1},       {"Q5_0", kQ5_0},
                                          {"Q5_1", kQ5_1},   {"Q8_0", kQ8_0},       {"Q2_K", kQ2_K},
                                          {"Q3_K", kQ3_K},   {"Q4_K", kQ4_K},       {"Q5_K", kQ5_K},
                                          {"Q6_K", kQ6_K},   {"IQ4_NL", kIQ4_NL},   {"IQ4_XS", kIQ4_XS},
                                          {"MXFP4", kMXFP4}, {"NVFP4", kNVFP4},     {"IQ1_S", kIQ1_S},
                                          {"IQ1_M", kIQ1_M}, {"IQ2_XXS", kIQ2_XXS}, {"IQ2_XS", kIQ2_XS},
                                          {"IQ2_S", kIQ2_S}, {"IQ3_XXS", kIQ3_XXS}, {"IQ3_S", kIQ3_S},
                                          {"TQ1_0", kTQ1_0}, {"TQ2_0", kTQ2_0},     {"Q2", kQ2}});
  m.attr("KV_BLOCK") = kKvBlock;
  m.attr("COUNTED") = kCounted;
}
