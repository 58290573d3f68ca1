// Silent corruption: results of a device are held back until a batch among them has been computed again and is equal.
//
//   Verifier verifier(lanes, rate, max_bytes);
//   if (auto window = verifier.hold(lane, {batch, labelled}); !window.empty()) {   // due
//     const Verdict verdict = verifier.judge(lane, window.back(), give_up);
//     ...                                                  // write the window, or let others compute it
//   }
//
// A window is what a device has labelled since its last batch that was found equal. It is due after `rate` batches, or
// when what waits takes too much memory; whoever runs out of work asks for it earlier (`close`).
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "classifier/engine_worker.h"
#include "tessera/classifier/engine.h"

namespace tessera::classifier {

/// The workers of a run, one a classifier, and the device of each.
class Lanes {
 public:
  /// References are kept. `device_of` as in EngineOptions.
  Lanes(const ClassifierConfig& config, const TextEncoder* encoder,
        std::span<const std::unique_ptr<Classifier>> classifiers, const std::vector<int>& device_of,
        const Worker::Options& options);

  size_t num_lanes() const { return lanes_.size(); }
  size_t num_devices() const { return num_devices_; }
  size_t device(size_t lane) const { return lanes_[lane]->device; }
  /// From any thread; one batch at a time on each lane.
  LabelledBatch label(size_t lane, EngineBatch& batch, const Worker::GiveUp& give_up);
  /// On any lane of `device` that has not failed, one that is idle if there is one. Empty if none of them could.
  std::optional<LabelledBatch> label_on(size_t device, EngineBatch& batch, const Worker::GiveUp& give_up);
  /// The lane labels nothing any more.
  void fail(size_t lane) { lanes_[lane]->has_failed = true; }

 private:
  struct Lane {
    std::mutex mutex;  // of the one who uses the worker
    std::unique_ptr<Worker> worker;
    size_t device = 0;
    std::atomic<bool> has_failed{false};
  };

  std::vector<std::unique_ptr<Lane>> lanes_;
  size_t num_devices_ = 0;
};

struct HeldBatch {
  EngineBatch batch;  // without its texts, which are in `labelled`
  LabelledBatch labelled;
};
using Window = std::vector<HeldBatch>;

struct Verdict {
  bool is_known = true;       ///< false where a stop, or a process that died, left it open
  std::vector<size_t> wrong;  ///< devices whose results cannot be trusted; none: the batch is right
};

/// Whether results are equal bit for bit, those of failed records by their errors.
bool are_equal(const LabelledBatch& one, const LabelledBatch& other, const ClassifierConfig& config);

class Verifier {
 public:
  /// `rate` 0: nothing is ever held. References are kept.
  Verifier(const ClassifierConfig& config, Lanes& lanes, int64_t rate, int64_t max_bytes);

  bool is_on() const { return rate_ > 0; }
  /// Batches that may be held at most, of all devices.
  size_t max_held() const { return static_cast<size_t>(rate_) * lanes_.num_lanes(); }
  /// The window of the lane's device if it is due, which the caller owns then; else empty.
  Window hold(size_t lane, HeldBatch held);
  /// What is held of the device, due or not.
  Window close(size_t device);
  bool is_quarantined(size_t device) const { return windows_[device].is_quarantined; }
  /// False where it was before.
  bool quarantine(size_t device) { return !windows_[device].is_quarantined.exchange(true); }

  /// Computes the batch again, elsewhere where there is an elsewhere. Where the results differ a third opinion decides:
  /// of a third device, else of the two again, where one that contradicts itself is wrong, and both if none does.
  Verdict judge(size_t lane, HeldBatch& held, const Worker::GiveUp& give_up);

 private:
  struct DeviceWindow {
    std::mutex mutex;
    Window held;  // guarded by mutex, as num_bytes
    int64_t num_bytes = 0;
    std::atomic<bool> is_quarantined{false};
  };

  std::vector<size_t> others(size_t device) const;

  const ClassifierConfig& config_;
  Lanes& lanes_;
  const int64_t rate_;
  const int64_t max_bytes_;
  std::deque<DeviceWindow> windows_;  // [devices]
};

}  // namespace tessera::classifier
