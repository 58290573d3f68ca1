// A queue between threads, bounded in records and in bytes.
//
//   queue.push(std::move(batch), num_records, num_bytes);   // reader; waits while the queue is full
//   while (auto batch = queue.pop()) {                      // workers; ends when the queue is finished and all is done
//     if (label(*batch)) queue.done();                      // every item that was popped is done with,
//     else queue.put_back(std::move(*batch), ...);          // or goes to whoever pops next
//   }
//
// An item larger than the limits is let in when the queue is empty, so that one batch always fits.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "tessera/core/check.h"

namespace tessera::classifier {

template <class T>
class BoundedQueue {
 public:
  BoundedQueue(int64_t max_records, int64_t max_bytes) : max_records_(max_records), max_bytes_(max_bytes) {
    TESSERA_CHECK(max_records >= 1 && max_bytes >= 1, max_records, max_bytes);
  }

  /// Waits for room. False, and the item is not taken, once the queue is finished or cancelled.
  bool push(T item, int64_t num_records, int64_t num_bytes) {
    TESSERA_CHECK(num_records >= 0 && num_bytes >= 0, num_records, num_bytes);
    std::unique_lock lock(mutex_);
    room_.wait(lock, [&] { return finished_ || has_room(num_records, num_bytes); });
    if (finished_) return false;
    items_.push_back({std::move(item), num_records, num_bytes});
    num_records_ += num_records;
    num_bytes_ += num_bytes;
    ready_.notify_one();
    return true;
  }

  /// Waits for an item. Empty once the queue is finished, nothing is left, and nothing can be put back any more; or
  /// cancelled.
  std::optional<T> pop() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return has_news(); });
    return items_.empty() ? std::nullopt : take();
  }

  /// As `pop`, for at most `patience`: empty also where none has come until then; `ended` tells which.
  std::optional<T> pop_for(std::chrono::nanoseconds patience, bool& ended) {
    std::unique_lock lock(mutex_);
    const bool ready = ready_.wait_for(lock, patience, [&] { return has_news(); });
    ended = ready && items_.empty();
    return items_.empty() ? std::nullopt : take();
  }

  /// One of the items popped needs nothing further.
  void done() {
    const std::lock_guard lock(mutex_);
    TESSERA_CHECK(num_in_work_ >= 1, num_in_work_);
    if (--num_in_work_ == 0) ready_.notify_all();
  }

  /// Returns an item that was popped to the front, whatever the limits. Dropped once cancelled.
  void put_back(T item, int64_t num_records, int64_t num_bytes) {
    const std::lock_guard lock(mutex_);
    TESSERA_CHECK(num_in_work_ >= 1, num_in_work_);
    --num_in_work_;
    if (!cancelled_) {
      items_.push_front({std::move(item), num_records, num_bytes});
      num_records_ += num_records;
      num_bytes_ += num_bytes;
    }
    ready_.notify_all();
  }

  /// Nothing more will be pushed; what is queued can still be popped.
  void finish() {
    const std::lock_guard lock(mutex_);
    finished_ = true;
    wake_all();
  }

  /// Finishes and drops what is queued; returns the number of records dropped.
  int64_t cancel() {
    const std::lock_guard lock(mutex_);
    finished_ = cancelled_ = true;
    const int64_t dropped = num_records_;
    items_.clear();
    num_records_ = 0;
    num_bytes_ = 0;
    wake_all();
    return dropped;
  }

  int64_t num_records() const {
    const std::lock_guard lock(mutex_);
    return num_records_;
  }

 private:
  struct Entry {
    T item;
    int64_t num_records = 0;
    int64_t num_bytes = 0;
  };

  bool has_news() const { return cancelled_ || !items_.empty() || (finished_ && num_in_work_ == 0); }
  std::optional<T> take() {
    ++num_in_work_;
    Entry entry = std::move(items_.front());
    items_.pop_front();
    num_records_ -= entry.num_records;
    num_bytes_ -= entry.num_bytes;
    room_.notify_all();
    return std::optional<T>(std::move(entry.item));
  }
  bool has_room(int64_t num_records, int64_t num_bytes) const {
    return items_.empty() || (num_records_ + num_records <= max_records_ && num_bytes_ + num_bytes <= max_bytes_);
  }
  void wake_all() {
    room_.notify_all();
    ready_.notify_all();
  }

  const int64_t max_records_;
  const int64_t max_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable room_;
  std::condition_variable ready_;
  std::deque<Entry> items_;  // guarded by mutex_, as everything below
  int64_t num_records_ = 0;
  int64_t num_bytes_ = 0;
  int64_t num_in_work_ = 0;  // popped, neither done nor put back
  bool finished_ = false;
  bool cancelled_ = false;
};

}  // namespace tessera::classifier
