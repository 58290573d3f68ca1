// The messages between a supervisor and one lane of a worker process: a layout of fixed places in memory that both map,
// and a socket whose datagrams say what is to be read there. Neither side trusts a number of the other to be in range.
//
//   supervisor                                      worker
//   LeaseChannel channel(shape);                    LeaseChannel channel(memory, socket);   // descriptors it was given
//   ... start the process ...                       channel.introduce(preferred_batch, description);
//   channel.wait_for_hello(deadline);
//   channel.put_lease(id, batch, ...);              while (channel.take_lease(lease)) {
//   channel.wait_for_answer(id, deadline);            classifier.run(lease.batch, lease.outputs);
//   channel.copy_results(outputs);                    channel.answer(Outcome::ok, ""); }
//
// A socket ends with the process that holds its other end, so that each side learns of the other's death at once.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "tessera/classifier/classifier.h"

namespace tessera::classifier {

/// A descriptor, owned.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;

  int get() const { return number_; }
  void reset();

 private:
  int number_ = -1;
};

/// Sizes of what passes; both sides must agree.
struct ChannelShape {
  int64_t sequence_length = 0;
  int64_t embedding_size = 0;
  int64_t num_classes = 0;
  int64_t num_experts = 0;
  int64_t is_embeddings = 0;

  bool operator==(const ChannelShape&) const = default;
  int64_t input_bytes() const {  ///< of one sentence
    return is_embeddings != 0 ? embedding_size * sequence_length * int64_t{sizeof(float)}
                              : sequence_length * int64_t{sizeof(int32_t)};
  }
};
ChannelShape channel_shape(const ClassifierConfig& config, InputKind input);

enum class Outcome : uint32_t {
  ok,
  out_of_memory,
  device_lost,  ///< the worker ends
  error,        ///< anything else; the text says what
};

/// Sentences that one lease holds at most, whatever a classifier likes to be given.
inline constexpr int64_t kMaxLeaseSentences = 1 << 16;

class LeaseChannel {
 public:
  using Clock = std::chrono::steady_clock;

  /// The supervisor's side: makes memory and a pair of sockets. Throws Error where the system has none.
  explicit LeaseChannel(const ChannelShape& shape);
  /// The worker's side; owns the descriptors. Throws Error unless they are those of a supervisor of this version.
  LeaseChannel(Descriptor memory, Descriptor socket);
  ~LeaseChannel();
  LeaseChannel(const LeaseChannel&) = delete;
  LeaseChannel& operator=(const LeaseChannel&) = delete;

  const ChannelShape& shape() const { return shape_; }

  // The supervisor's.

  int memory() const { return memory_.get(); }
  /// The worker's end of the socket, for the worker to inherit; `close_far_end` once it has.
  int far_end() const { return far_end_.get(); }
  void close_far_end() { far_end_.reset(); }

  enum class Wait : uint8_t { answered, ended, too_late };
  /// The worker's introduction, or its refusal (`outcome` is then not ok).
  Wait wait_for_hello(Clock::time_point deadline);
  /// Makes room for `num_sentences` a lease. Throws std::bad_alloc.
  void reserve(int64_t num_sentences);
  /// Copies input; at most as many sentences as reserved.
  void put_lease(uint64_t lease_id, const Batch& batch, bool wants_router_weights);
  Wait wait_for_answer(uint64_t lease_id, Clock::time_point deadline);
  /// Of the lease that was answered, as far as `outputs` wants them: logits, router weights, status.
  void copy_results(const Outputs& outputs) const;

  Outcome outcome() const;
  std::string text() const;  ///< what the worker said: a description, or what went wrong
  int64_t preferred_batch() const;

  // The worker's.

  struct Lease {
    Batch batch;
    Outputs outputs;
  };
  /// `problem` in place of a description where the classifier could not be made.
  void introduce(int64_t preferred_batch, const std::string& description, Outcome outcome);
  /// Waits for the next lease; empty once the supervisor is gone.
  std::optional<Lease> take_lease();
  void answer(Outcome outcome, const std::string& text);
  /// Lets a `take_lease` of another thread return, and the supervisor see an end.
  void shut_down() const;

 private:
  struct Head;
  struct Places;

  void map_head();
  void map_arrays(int64_t max_sentences);
  Places places() const;
  bool send(uint32_t kind, uint64_t lease_id) const;
  Wait receive(uint32_t kind, uint64_t lease_id, Clock::time_point deadline) const;
  void say(Outcome outcome, const std::string& text) const;

  ChannelShape shape_;
  Descriptor memory_;
  Descriptor socket_;
  Descriptor far_end_;
  Head* head_ = nullptr;
  std::byte* arrays_ = nullptr;
  size_t arrays_bytes_ = 0;
  int64_t max_sentences_ = 0;
  int64_t num_sentences_ = 0;  // of the lease under way
  uint64_t lease_id_ = 0;
};

}  // namespace tessera::classifier
