// Runs one level's vector kernels on requests from standard input, where no Python module of that level can
// be loaded (see test_vector_other_levels.py). A request is a letter, its integers as int64 and its
// arrays as floats; the answer is an array of floats.
//   n layer size biased | eps x weight [bias]   -> y
//   a kind size gated | gate [up]               -> h
//   r interleaved size entries | x cos sin      -> x
//   t type tokens positions heads kv_heads dim window | q k v -> attention
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "binary_streams.h"
#include "bindings/attention_arrays.h"

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)

namespace hotset {
extern const VectorKernels JOIN(vector_, HOTSET_LEVEL);
}

using namespace hotset;

namespace {

const VectorKernels& kernels = JOIN(vector_, HOTSET_LEVEL);

int64_t read_number() {
  int64_t number;
  if (fread(&number, sizeof number, 1, stdin) != 1) exit(3);
  return number;
}

std::vector<float> read_array(int64_t n) {
  std::vector<float> array(static_cast<size_t>(n));
  if (fread(array.data(), sizeof(float), array.size(), stdin) != array.size()) exit(3);
  return array;
}

std::vector<float> norm() {
  const bool layer = read_number() != 0;
  const int64_t n = read_number(), bias_size = read_number() ? n : 0;
  const float eps = read_array(1)[0];
  std::vector<float> x = read_array(n), weight = read_array(n), bias = read_array(bias_size);
  const auto kernel = layer ? kernels.layer_norm : kernels.rms_norm;
  kernel(x.data(), weight.data(), bias.empty() ? nullptr : bias.data(), eps, n, x.data());
  return x;
}

std::vector<float> activate() {
  const auto kind = static_cast<Activation>(read_number());
  const int64_t n = read_number(), up_size = read_number() ? n : 0;
  std::vector<float> gate = read_array(n), up = read_array(up_size);
  kernels.activate(kind, gate.data(), up.empty() ? nullptr : up.data(), n);
  return gate;
}

std::vector<float> rope() {
  const bool interleaved = read_number() != 0;
  const int64_t n = read_number(), entries = read_number();
  std::vector<float> x = read_array(n), cos = read_array(entries), sin = read_array(entries);
  const auto kernel = interleaved ? kernels.rope_interleaved : kernels.rope;
  kernel(x.data(), cos.data(), sin.data(), entries);
  return x;
}

std::vector<float> attention() {
  const auto type = static_cast<KvType>(read_number());
  HeadShapes s;
  s.tokens = read_number();
  s.positions = read_number();
  s.heads = read_number();
  s.kv_heads = read_number();
  s.dim = read_number();
  s.value_dim = s.dim;
  const int64_t window = read_number();
  const std::vector<float> q = read_array(s.tokens * s.heads * s.dim);
  const std::vector<float> k = read_array(s.positions * s.kv_heads * s.dim);
  const std::vector<float> v = read_array(s.positions * s.kv_heads * s.dim);
  std::vector<float> out(q.size());
  attend_arrays(*kernels.attention, type, s, q.data(), k.data(), v.data(), window, out.data());
  return out;
}

}  // namespace

int main() {
  use_binary_streams();
  for (int request = getchar(); request != EOF; request = getchar()) {
    const std::vector<float> answer = request == 'n'   ? norm()
                                      : request == 'a' ? activate()
                                      : request == 'r' ? rope()
                                                       : attention();
    fwrite(answer.data(), sizeof(float), answer.size(), stdout);
    fflush(stdout);
  }
}
