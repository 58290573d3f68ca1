#include "classifier/engine_verify.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "classifier/restartable.h"
#include "tessera/core/check.h"

namespace tessera::classifier {

Lanes::Lanes(const ClassifierConfig& config, const TextEncoder* encoder,
             std::span<const std::unique_ptr<Classifier>> classifiers, const std::vector<int>& device_of,
             const Worker::Options& options) {
  TESSERA_CHECK(device_of.empty() || device_of.size() == classifiers.size(), device_of.size(), classifiers.size());
  std::map<int, size_t> devices;
  for (size_t i = 0; i < classifiers.size(); ++i) {
    auto lane = std::make_unique<Lane>();
    lane->worker = std::make_unique<Worker>(config, encoder, *classifiers[i], options);
    lane->device =
        devices.emplace(device_of.empty() ? static_cast<int>(i) : device_of[i], devices.size()).first->second;
    lanes_.push_back(std::move(lane));
  }
  num_devices_ = devices.size();
}

LabelledBatch Lanes::label(size_t lane, EngineBatch& batch, const Worker::GiveUp& give_up) {
  const std::lock_guard lock(lanes_[lane]->mutex);
  return lanes_[lane]->worker->label(batch, give_up);
}

std::optional<LabelledBatch> Lanes::label_on(size_t device, EngineBatch& batch, const Worker::GiveUp& give_up) {
  std::vector<Lane*> candidates;
  for (const auto& lane : lanes_) {
    if (lane->device == device && !lane->has_failed) candidates.push_back(lane.get());
  }
  if (candidates.empty()) return std::nullopt;
  std::unique_lock<std::mutex> lock;
  Lane* chosen = candidates.front();
  for (Lane* candidate : candidates) {
    lock = std::unique_lock(candidate->mutex, std::try_to_lock);
    chosen = candidate;
    if (lock.owns_lock()) break;
  }
  if (!lock.owns_lock()) lock = std::unique_lock(chosen->mutex);
  try {
    return chosen->worker->label(batch, give_up);
  } catch (const DeviceError&) {
    return std::nullopt;  // the lane's own thread will see it, and retire
  } catch (const WorkerLost&) {
    return std::nullopt;
  }
}

bool are_equal(const LabelledBatch& one, const LabelledBatch& other, const ClassifierConfig& config) {
  if (one.num_records != other.num_records || one.num_done != other.num_done) return false;
  const auto equal_rows = [](const Buffer<float>& a, const Buffer<float>& b, size_t row, int64_t columns) {
    if (a.size() != b.size()) return false;
    const size_t count = static_cast<size_t>(columns);
    return a.empty() || std::memcmp(a.data() + row * count, b.data() + row * count, count * sizeof(float)) == 0;
  };
  for (size_t i = 0; i < static_cast<size_t>(one.num_done); ++i) {
    if (one.errors[i] != other.errors[i]) return false;
    if (!one.errors[i].empty()) continue;
    if (!equal_rows(one.logits, other.logits, i, config.num_classes)) return false;
    if (!equal_rows(one.router_weights, other.router_weights, i, config.num_experts)) return false;
  }
  return true;
}

Verifier::Verifier(const ClassifierConfig& config, Lanes& lanes, int64_t rate, int64_t max_bytes)
    : config_(config), lanes_(lanes), rate_(rate), max_bytes_(max_bytes), windows_(lanes.num_devices()) {
  TESSERA_CHECK(rate >= 0, rate);
}

Window Verifier::hold(size_t lane, HeldBatch held) {
  DeviceWindow& window = windows_[lanes_.device(lane)];
  const std::lock_guard lock(window.mutex);
  window.num_bytes += batch_bytes(held.batch.records) + static_cast<int64_t>(held.labelled.texts.num_bytes());
  window.held.push_back(std::move(held));
  if (static_cast<int64_t>(window.held.size()) < rate_ && window.num_bytes < max_bytes_) return {};
  window.num_bytes = 0;
  return std::exchange(window.held, {});
}

Window Verifier::close(size_t device) {
  DeviceWindow& window = windows_[device];
  const std::lock_guard lock(window.mutex);
  window.num_bytes = 0;
  return std::exchange(window.held, {});
}

std::vector<size_t> Verifier::others(size_t device) const {
  std::vector<size_t> others;
  for (size_t i = 1; i < windows_.size(); ++i) {
    const size_t other = (device + i) % windows_.size();  // not always the same one
    if (!windows_[other].is_quarantined) others.push_back(other);
  }
  return others;
}

Verdict Verifier::judge(size_t lane, HeldBatch& held, const Worker::GiveUp& give_up) {
  const size_t own = lanes_.device(lane);
  const LabelledBatch& first = held.labelled;
  bool is_cut = false;
  // What a device makes of the batch now; empty where it makes nothing.
  const auto opinion = [&](size_t device) {
    std::optional<LabelledBatch> made = lanes_.label_on(device, held.batch, give_up);
    if (made && made->num_done < first.num_done) is_cut = true;
    if (made) made->num_done = std::min(made->num_done, first.num_done);
    return made;
  };
  const auto differ = [&](const std::optional<LabelledBatch>& made, const LabelledBatch& than) {
    return made && !is_cut && !are_equal(*made, than, config_);
  };

  std::vector<size_t> rest = others(own);
  std::optional<LabelledBatch> second;
  size_t where = own;
  while (!second && !rest.empty()) {
    where = rest.front();
    rest.erase(rest.begin());
    second = opinion(where);
  }
  if (!second) second = opinion(where = own);
  if (!second || is_cut) return {.is_known = false, .wrong = {}};
  if (!differ(second, first)) return {};
  if (where == own) return {.is_known = true, .wrong = {own}};
  for (const size_t third_device : rest) {
    const std::optional<LabelledBatch> third = opinion(third_device);
    if (!third) continue;
    if (is_cut) return {.is_known = false, .wrong = {}};
    const bool against_first = differ(third, first), against_second = differ(third, *second);
    if (against_first && against_second) return {.is_known = true, .wrong = {own, where}};
    return {.is_known = true, .wrong = {against_first ? own : where}};
  }
  Verdict verdict;
  if (differ(opinion(own), first)) verdict.wrong.push_back(own);
  if (differ(opinion(where), *second)) verdict.wrong.push_back(where);
  if (is_cut) return {.is_known = false, .wrong = {}};
  if (verdict.wrong.empty()) verdict.wrong = {own, where};
  return verdict;
}

}  // namespace tessera::classifier
