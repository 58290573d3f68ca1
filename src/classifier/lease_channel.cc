#include "classifier/lease_channel.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::classifier {

namespace {

constexpr uint64_t kMagic = 0x6c616e6574726374;
constexpr uint32_t kChannelVersion = 1;
constexpr size_t kTextBytes = 2048;
constexpr size_t kAlignment = 64;  // a cache line, and what loads of the CPU back end like
constexpr size_t kPage = 4096;     // arrays begin at the second page

enum Kind : uint32_t { kHello = 1, kLease = 2, kAnswer = 3 };

/// A datagram: that something is to be read in the memory.
struct Signal {
  uint32_t kind = 0;
  uint32_t version = kChannelVersion;
  uint64_t lease_id = 0;
};
static_assert(std::is_trivially_copyable_v<Signal> && sizeof(Signal) == 16);

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

void* map(int memory, size_t bytes, size_t offset) {
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, static_cast<off_t>(offset));
  return mapped == MAP_FAILED ? nullptr : mapped;
}

/// Out of the way of the numbers that a worker is given.
Descriptor moved_up(const Descriptor& low, const char* what) {
  constexpr int kFirst = 64;
  const int high = low.get() < 0 ? -1 : fcntl(low.get(), F_DUPFD_CLOEXEC, kFirst);
  if (high < 0) throw Error("worker process", str_cat("cannot make ", what, ": ", errno_message(errno)));
  return Descriptor(high);
}

}  // namespace

/// The first page of the memory.
struct LeaseChannel::Head {
  uint64_t magic;
  uint32_t version;
  uint32_t outcome;
  ChannelShape shape;
  int64_t preferred_batch;
  int64_t max_sentences;  // that the arrays hold
  int64_t num_sentences;  // of the lease
  uint64_t wants_router_weights;
  uint64_t text_bytes;
  char text[kTextBytes];
};

/// Where the arrays lie, in bytes from the second page on.
struct LeaseChannel::Places {
  size_t input = 0;
  size_t logits = 0;
  size_t router_weights = 0;
  size_t status = 0;
  size_t end = 0;

  Places(const ChannelShape& shape, int64_t max_sentences) {
    const auto sentences = static_cast<size_t>(max_sentences);
    logits = aligned(sentences * static_cast<size_t>(shape.input_bytes()));
    router_weights = logits + aligned(sentences * static_cast<size_t>(shape.num_classes) * sizeof(float));
    status = router_weights + aligned(sentences * static_cast<size_t>(shape.num_experts) * sizeof(float));
    end = status + aligned(sentences * sizeof(RecordStatus));
  }
};

Descriptor::~Descriptor() { reset(); }
Descriptor::Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}
void Descriptor::reset() {
  if (number_ >= 0) close(number_);
  number_ = -1;
}

ChannelShape channel_shape(const ClassifierConfig& config, InputKind input) {
  return {.sequence_length = config.sequence_length,
          .embedding_size = config.embedding_size,
          .num_classes = config.num_classes,
          .num_experts = config.num_experts,
          .is_embeddings = input == InputKind::embeddings ? 1 : 0};
}

LeaseChannel::LeaseChannel(const ChannelShape& shape) : shape_(shape) {
  memory_ = moved_up(Descriptor(memfd_create("tessera-lease", MFD_CLOEXEC)), "shared memory");
  int ends[2] = {-1, -1};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    throw Error("worker process", "cannot make a socket: " + errno_message(errno));
  }
  const Descriptor near(ends[0]), far(ends[1]);
  socket_ = moved_up(near, "a socket");
  far_end_ = moved_up(far, "a socket");
  static_assert(sizeof(Head) <= kPage && std::is_trivially_copyable_v<Head>);
  if (ftruncate(memory_.get(), kPage) != 0) throw std::bad_alloc();
  map_head();
  *head_ = {.magic = kMagic,
            .version = kChannelVersion,
            .outcome = 0,
            .shape = shape,
            .preferred_batch = 0,
            .max_sentences = 0,
            .num_sentences = 0,
            .wants_router_weights = 0,
            .text_bytes = 0,
            .text = {}};
}

LeaseChannel::LeaseChannel(Descriptor memory, Descriptor socket)
    : memory_(std::move(memory)), socket_(std::move(socket)) {
  int type = 0;
  socklen_t size = sizeof(type);
  if (getsockopt(socket_.get(), SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_SEQPACKET) {
    throw Error("worker process", "no socket of a supervisor", "to be started by one");
  }
  for (const int descriptor : {memory_.get(), socket_.get()}) fcntl(descriptor, F_SETFD, FD_CLOEXEC);
  map_head();
  if (head_->magic != kMagic || head_->version != kChannelVersion) {
    throw Error("worker process", "memory of another version", "a supervisor of the same program");
  }
  shape_ = head_->shape;
}

LeaseChannel::~LeaseChannel() {
  if (arrays_ != nullptr) munmap(arrays_, arrays_bytes_);
  if (head_ != nullptr) munmap(head_, kPage);
}

void LeaseChannel::map_head() {
  head_ = static_cast<Head*>(map(memory_.get(), kPage, 0));
  if (head_ == nullptr) throw Error("worker process", "cannot map shared memory: " + errno_message(errno));
}

void LeaseChannel::map_arrays(int64_t max_sentences) {
  if (arrays_ != nullptr) munmap(std::exchange(arrays_, nullptr), arrays_bytes_);
  arrays_bytes_ = Places(shape_, max_sentences).end;
  arrays_ = static_cast<std::byte*>(map(memory_.get(), arrays_bytes_, kPage));
  if (arrays_ == nullptr) throw std::bad_alloc();
  max_sentences_ = max_sentences;
}

LeaseChannel::Places LeaseChannel::places() const { return {shape_, max_sentences_}; }

bool LeaseChannel::send(uint32_t kind, uint64_t lease_id) const {
  std::atomic_signal_fence(std::memory_order_seq_cst);  // the system call orders what other processors see
  const Signal signal{.kind = kind, .version = kChannelVersion, .lease_id = lease_id};
  ssize_t sent = 0;
  do {
    sent = ::send(socket_.get(), &signal, sizeof(signal), MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent == static_cast<ssize_t>(sizeof(signal));
}

LeaseChannel::Wait LeaseChannel::receive(uint32_t kind, uint64_t lease_id, Clock::time_point deadline) const {
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd request{.fd = socket_.get(), .events = POLLIN, .revents = 0};
    const int ready = poll(&request, 1, static_cast<int>(std::clamp<int64_t>(left + 1, 0, 1'000'000)));
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0 && Clock::now() < deadline) continue;
    if (ready == 0) return Wait::too_late;
    Signal signal;
    const ssize_t count = recv(socket_.get(), &signal, sizeof(signal), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count != static_cast<ssize_t>(sizeof(signal))) return Wait::ended;  // 0 or ECONNRESET: the process is gone
    if (signal.kind == kind && signal.version == kChannelVersion && signal.lease_id == lease_id) return Wait::answered;
  }
}

LeaseChannel::Wait LeaseChannel::wait_for_hello(Clock::time_point deadline) { return receive(kHello, 0, deadline); }

void LeaseChannel::reserve(int64_t num_sentences) {
  TESSERA_CHECK(num_sentences >= 1 && num_sentences <= kMaxLeaseSentences, num_sentences);
  const size_t bytes = kPage + Places(shape_, num_sentences).end;
  if (ftruncate(memory_.get(), static_cast<off_t>(bytes)) != 0) throw std::bad_alloc();
  map_arrays(num_sentences);
  head_->max_sentences = num_sentences;
}

void LeaseChannel::put_lease(uint64_t lease_id, const Batch& batch, bool wants_router_weights) {
  TESSERA_CHECK(batch.num_sentences >= 1 && batch.num_sentences <= max_sentences_, batch.num_sentences, max_sentences_);
  const void* input = shape_.is_embeddings != 0 ? static_cast<const void*>(batch.embeddings) : batch.ids;
  TESSERA_CHECK(input != nullptr, lease_id);
  std::memcpy(arrays_, input, static_cast<size_t>(batch.num_sentences * shape_.input_bytes()));
  head_->num_sentences = num_sentences_ = batch.num_sentences;
  head_->wants_router_weights = wants_router_weights ? 1 : 0;
  static_cast<void>(send(kLease, lease_id));  // a worker that is gone is seen by the wait for its answer
}

LeaseChannel::Wait LeaseChannel::wait_for_answer(uint64_t lease_id, Clock::time_point deadline) {
  return receive(kAnswer, lease_id, deadline);
}

void LeaseChannel::copy_results(const Outputs& outputs) const {
  const Places at = places();
  const auto copy = [&](auto* target, size_t place, int64_t columns) {
    if (target == nullptr) return;
    std::memcpy(target, arrays_ + place, static_cast<size_t>(num_sentences_ * columns) * sizeof(*target));
  };
  copy(outputs.logits, at.logits, shape_.num_classes);
  copy(outputs.router_weights, at.router_weights, shape_.num_experts);
  if (outputs.status == nullptr) return;
  for (int64_t i = 0; i < num_sentences_; ++i) {
    const auto status = std::to_integer<uint8_t>(arrays_[at.status + static_cast<size_t>(i)]);
    if (status > static_cast<uint8_t>(RecordStatus::not_finite)) {
      throw DeviceError(str_cat("a worker process answered with a status of ", static_cast<int>(status)));
    }
    outputs.status[i] = static_cast<RecordStatus>(status);
  }
}

Outcome LeaseChannel::outcome() const {
  return static_cast<Outcome>(std::min(head_->outcome, static_cast<uint32_t>(Outcome::error)));
}
std::string LeaseChannel::text() const {
  return {head_->text, static_cast<size_t>(std::min<uint64_t>(head_->text_bytes, kTextBytes))};
}
int64_t LeaseChannel::preferred_batch() const {
  return std::clamp<int64_t>(head_->preferred_batch, 1, kMaxLeaseSentences);
}

void LeaseChannel::say(Outcome outcome, const std::string& text) const {
  head_->outcome = static_cast<uint32_t>(outcome);
  head_->text_bytes = std::min(text.size(), kTextBytes);
  std::memcpy(head_->text, text.data(), static_cast<size_t>(head_->text_bytes));
}

void LeaseChannel::introduce(int64_t preferred_batch, const std::string& description, Outcome outcome) {
  head_->preferred_batch = preferred_batch;
  say(outcome, description);
  static_cast<void>(send(kHello, 0));
}

std::optional<LeaseChannel::Lease> LeaseChannel::take_lease() {
  Signal signal;
  ssize_t count = 0;
  do {
    count = recv(socket_.get(), &signal, sizeof(signal), 0);
  } while (count < 0 && errno == EINTR);
  if (count != static_cast<ssize_t>(sizeof(signal)) || signal.kind != kLease) return std::nullopt;
  lease_id_ = signal.lease_id;
  const int64_t max_sentences = head_->max_sentences;
  TESSERA_CHECK(max_sentences >= 1 && max_sentences <= kMaxLeaseSentences, max_sentences);
  if (max_sentences != max_sentences_) map_arrays(max_sentences);
  num_sentences_ = head_->num_sentences;
  TESSERA_CHECK(num_sentences_ >= 1 && num_sentences_ <= max_sentences_, num_sentences_, max_sentences_);
  const Places at = places();
  Lease lease;
  lease.batch.num_sentences = num_sentences_;
  if (shape_.is_embeddings != 0) {
    lease.batch.embeddings = reinterpret_cast<const float*>(arrays_);
  } else {
    lease.batch.ids = reinterpret_cast<const int32_t*>(arrays_);
  }
  lease.outputs.logits = reinterpret_cast<float*>(arrays_ + at.logits);
  lease.outputs.status = reinterpret_cast<RecordStatus*>(arrays_ + at.status);
  if (head_->wants_router_weights != 0) {
    lease.outputs.router_weights = reinterpret_cast<float*>(arrays_ + at.router_weights);
  }
  return lease;
}

void LeaseChannel::answer(Outcome outcome, const std::string& text) {
  say(outcome, text);
  static_cast<void>(send(kAnswer, lease_id_));
}

void LeaseChannel::shut_down() const { shutdown(socket_.get(), SHUT_RDWR); }

}  // namespace tessera::classifier
