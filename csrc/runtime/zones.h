// Where a token's time goes: named zones of the code, timed by the thread that calls it.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>

namespace hotset {

enum class ZoneName : int32_t {
  kOutside,  // of native code: Python, sampling
  kAttentionInput,
  kAttentionScores,
  kAttentionOutput,
  kFfnPredictor,
  kFfnRouter,
  kFfnPacking,
  kFfnUp,
  kFfnDown,
  kFfnChosen,
  kRecurrentInput,
  kRecurrentStates,
  kRecurrentOutput,
  kLayerInput,
  kHead,
  kCount
};

constexpr std::array<const char*, static_cast<size_t>(ZoneName::kCount)> kZoneNames = {
    "outside the native code",
    "attention: queries, keys, values",
    "attention: scores and sums",
    "attention: output",
    "FFN: predictor",
    "FFN: router",
    "FFN: packing experts",
    "FFN: gate and up",
    "FFN: down",
    "FFN: chosen neurons",
    "recurrent layer: input",
    "recurrent layer: states",
    "recurrent layer: output",
    "a layer's own input",
    "head"};

// Each moment belongs to the innermost zone. Off, a zone costs a branch. For one thread at a time.
class Zones {
 public:
  using Seconds = std::array<double, kZoneNames.size()>;

  // Starts again, outside; or stops.
  void measure(bool on) {
    on_ = on;
    current_ = ZoneName::kOutside;
    since_ = Clock::now();
    if (on) seconds_ = {};
  }

  // Up to now.
  const Seconds& seconds() {
    if (on_) charge();
    return seconds_;
  }

 private:
  friend class Zone;
  using Clock = std::chrono::steady_clock;

  void charge() {
    const auto now = Clock::now();
    seconds_[static_cast<size_t>(current_)] += std::chrono::duration<double>(now - since_).count();
    since_ = now;
  }

  ZoneName enter(ZoneName name) {
    charge();
    const ZoneName before = current_;
    current_ = name;
    return before;
  }

  bool on_ = false;
  ZoneName current_ = ZoneName::kOutside;
  Clock::time_point since_;
  Seconds seconds_ = {};
};

// Until it ends, or `next`, time counts as its own.
class Zone {
 public:
  Zone(Zones& zones, ZoneName name) : zones_(zones.on_ ? &zones : nullptr) {
    if (zones_) before_ = zones_->enter(name);
  }
  ~Zone() {
    if (zones_) zones_->enter(before_);
  }
  Zone(const Zone&) = delete;
  Zone& operator=(const Zone&) = delete;

  void next(ZoneName name) {
    if (zones_) zones_->enter(name);
  }

 private:
  Zones* zones_;
  ZoneName before_ = ZoneName::kOutside;
};

}  // namespace hotset
