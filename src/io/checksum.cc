#include "io/checksum.h"

#include <algorithm>
#include <vector>

#include "io/file.h"
#include "tessera/core/check.h"

// The whole of the library in this file: nothing to link, and the one user needs one algorithm.
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace tessera::io {

namespace {

constexpr uint64_t kChecksumReadBytes = 1u << 20;
constexpr uint64_t kNumPieces = 64;
constexpr uint64_t kSampleBytes = 64u << 10;

/// Adds [begin, begin + num_bytes) of `file`, through `buffer`.
void add_range(const InputFile& file, uint64_t begin, uint64_t num_bytes, std::vector<char>& buffer,
               Checksum& checksum) {
  buffer.resize(kChecksumReadBytes);
  for (uint64_t done = 0; done < num_bytes;) {
    const size_t count = static_cast<size_t>(std::min(kChecksumReadBytes, num_bytes - done));
    file.read_at(begin + done, std::as_writable_bytes(std::span(buffer).first(count)));
    checksum.update({buffer.data(), count});
    done += count;
  }
}

}  // namespace

struct Checksum::State {
  XXH3_state_t xxh;
};

Checksum::Checksum() : state_(std::make_unique<State>()) {
  TESSERA_CHECK(XXH3_128bits_reset(&state_->xxh) == XXH_OK, "a fresh state");
}

Checksum::~Checksum() = default;

void Checksum::update(std::string_view bytes) {
  TESSERA_CHECK(XXH3_128bits_update(&state_->xxh, bytes.data(), bytes.size()) == XXH_OK, bytes.size());
}

std::string Checksum::hex() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state_->xxh));
  static constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : canonical.digest) text += {kDigits[byte >> 4], kDigits[byte & 15]};
  return text;
}

void add_file(const std::filesystem::path& path, uint64_t num_bytes, Checksum& checksum) {
  std::vector<char> buffer;
  add_range(InputFile(path), 0, num_bytes, buffer, checksum);
}

std::string file_checksum(const std::filesystem::path& path) {
  const InputFile file(path);
  std::vector<char> buffer;
  Checksum checksum;
  add_range(file, 0, file.size(), buffer, checksum);
  return checksum.hex();
}

std::string sampled_checksum(const std::filesystem::path& path) {
  const InputFile file(path);
  std::vector<char> buffer;
  Checksum checksum;
  if (file.size() <= kNumPieces * kSampleBytes) {
    add_range(file, 0, file.size(), buffer, checksum);
    return checksum.hex();
  }
  const uint64_t last_begin = file.size() - kSampleBytes;
  for (uint64_t piece = 0; piece < kNumPieces; ++piece) {
    // Divided first: the product of a file's size and 63 may not fit.
    const uint64_t begin = last_begin / (kNumPieces - 1) * piece;
    add_range(file, piece + 1 < kNumPieces ? begin : last_begin, kSampleBytes, buffer, checksum);
  }
  return checksum.hex();
}

}  // namespace tessera::io
