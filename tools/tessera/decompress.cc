#include "decompress.h"

#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "peeked_input.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::cli {

namespace {

using namespace std::string_view_literals;

constexpr size_t kCompressedBytes = 128 << 10;
constexpr uint64_t kMaxDictionaryBytes = uint64_t{256} << 20;  // xz -9 takes 64 MiB, zstd --ultra 128 MiB
constexpr int kMaxWindowLog = 27;                              // of zstd: 128 MiB

constexpr std::array<std::string_view, 3> kExtensions{".gz", ".zst", ".xz"};
constexpr std::string_view kGzip = "\x1F\x8B"sv;
constexpr std::string_view kZstd = "\x28\xB5\x2F\xFD"sv;
constexpr std::string_view kXz = "\xFD\x37zXZ\0"sv;

/// A decompressor of one library: takes bytes from `in`, puts bytes into `out`, moves both on.
class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual const char* format() const = 0;
  /// `is_last`: nothing comes behind `in`. Empty, or what is wrong with the data.
  virtual std::string decode(std::span<const char>& in, std::span<char>& out, bool is_last) = 0;
  /// Whether a stream has ended and none has begun behind it.
  virtual bool is_at_end() const = 0;
};

class GzipDecoder final : public Decoder {
 public:
  GzipDecoder() {
    constexpr int kGzipWithLargestWindow = 15 + 16;
    if (inflateInit2(&stream_, kGzipWithLargestWindow) != Z_OK) throw std::bad_alloc();
  }
  ~GzipDecoder() override { inflateEnd(&stream_); }
  GzipDecoder(const GzipDecoder&) = delete;
  GzipDecoder& operator=(const GzipDecoder&) = delete;

  const char* format() const override { return "gzip"; }
  bool is_at_end() const override { return is_at_end_; }

  std::string decode(std::span<const char>& in, std::span<char>& out, bool) override {
    if (is_at_end_) {
      while (!in.empty() && in.front() == '\0') in = in.subspan(1);  // padding, as tapes have it
      if (in.empty()) return "";
      inflateReset(&stream_);
    }
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(in.data()));
    stream_.avail_in = static_cast<uInt>(in.size());
    stream_.next_out = reinterpret_cast<Bytef*>(out.data());
    stream_.avail_out = static_cast<uInt>(std::min<size_t>(out.size(), UINT32_MAX));
    const size_t room = stream_.avail_out;
    const int result = inflate(&stream_, Z_NO_FLUSH);
    in = in.last(stream_.avail_in);
    out = out.subspan(room - stream_.avail_out);
    if (result == Z_MEM_ERROR) throw std::bad_alloc();
    if (result == Z_DATA_ERROR || result == Z_NEED_DICT) return stream_.msg == nullptr ? "bad data" : stream_.msg;
    is_at_end_ = result == Z_STREAM_END;
    return "";
  }

 private:
  z_stream stream_{};
  bool is_at_end_ = false;
};

class ZstdDecoder final : public Decoder {
 public:
  ZstdDecoder() : stream_(ZSTD_createDStream()) {
    if (stream_ == nullptr) throw std::bad_alloc();
    ZSTD_DCtx_setParameter(stream_, ZSTD_d_windowLogMax, kMaxWindowLog);
  }
  ~ZstdDecoder() override { ZSTD_freeDStream(stream_); }
  ZstdDecoder(const ZstdDecoder&) = delete;
  ZstdDecoder& operator=(const ZstdDecoder&) = delete;

  const char* format() const override { return "zstd"; }
  bool is_at_end() const override { return is_at_end_; }

  std::string decode(std::span<const char>& in, std::span<char>& out, bool) override {
    if (in.empty() && is_at_end_) return "";
    ZSTD_inBuffer from{in.data(), in.size(), 0};
    ZSTD_outBuffer to{out.data(), out.size(), 0};
    const size_t result = ZSTD_decompressStream(stream_, &to, &from);
    in = in.subspan(from.pos);
    out = out.subspan(to.pos);
    if (ZSTD_isError(result) != 0) return ZSTD_getErrorName(result);
    is_at_end_ = result == 0;
    return "";
  }

 private:
  ZSTD_DStream* stream_;
  bool is_at_end_ = false;
};

class XzDecoder final : public Decoder {
 public:
  XzDecoder() {
    if (lzma_stream_decoder(&stream_, kMaxDictionaryBytes, LZMA_CONCATENATED) != LZMA_OK) throw std::bad_alloc();
  }
  ~XzDecoder() override { lzma_end(&stream_); }
  XzDecoder(const XzDecoder&) = delete;
  XzDecoder& operator=(const XzDecoder&) = delete;

  const char* format() const override { return "xz"; }
  bool is_at_end() const override { return is_at_end_; }

  std::string decode(std::span<const char>& in, std::span<char>& out, bool is_last) override {
    if (is_at_end_) return "";
    stream_.next_in = reinterpret_cast<const uint8_t*>(in.data());
    stream_.avail_in = in.size();
    stream_.next_out = reinterpret_cast<uint8_t*>(out.data());
    stream_.avail_out = out.size();
    const lzma_ret result = lzma_code(&stream_, is_last ? LZMA_FINISH : LZMA_RUN);
    in = in.last(stream_.avail_in);
    out = out.last(stream_.avail_out);
    if (result == LZMA_MEM_ERROR) throw std::bad_alloc();
    if (result == LZMA_MEMLIMIT_ERROR) return str_cat("a dictionary of more than ", kMaxDictionaryBytes, " bytes");
    if (result != LZMA_OK && result != LZMA_STREAM_END && result != LZMA_BUF_ERROR) return "bad data";
    is_at_end_ = result == LZMA_STREAM_END;
    return "";
  }

 private:
  lzma_stream stream_ = LZMA_STREAM_INIT;
  bool is_at_end_ = false;
};

class DecompressedInput final : public io::FilteredInput {
 public:
  DecompressedInput(std::unique_ptr<io::ByteInput> source, std::unique_ptr<Decoder> decoder)
      : FilteredInput(std::move(source)), decoder_(std::move(decoder)), buffer_(kCompressedBytes) {}

  size_t read(std::span<char> destination) override {
    std::span<char> room = destination;
    while (room.size() == destination.size()) {
      if (pending_.empty() && !ended_) {
        const size_t count = source().read(buffer_);
        ended_ = count == 0;
        pending_ = std::span<const char>(buffer_).first(count);
        if (ended_ && stopped()) return 0;
      }
      const std::string problem = decoder_->decode(pending_, room, ended_);
      if (!problem.empty()) throw Error(name(), str_cat(decoder_->format(), " data that is damaged (", problem, ")"));
      if (room.size() < destination.size() || !ended_ || !pending_.empty()) continue;
      if (decoder_->is_at_end()) return 0;
      throw Error(name(), str_cat(decoder_->format(), " data that ends too early"), "all of the file");
    }
    return destination.size() - room.size();
  }
  bool is_ready(std::chrono::milliseconds timeout) const override {
    return !pending_.empty() || source().is_ready(timeout);
  }

 private:
  std::unique_ptr<Decoder> decoder_;
  std::vector<char> buffer_;
  std::span<const char> pending_;  // of buffer_, still to be decoded
  bool ended_ = false;             // the source has no more
};

class CompressedInput final : public ChosenInput {
 public:
  using ChosenInput::ChosenInput;

 private:
  bool may_begin_a_format(std::string_view bytes) const override {
    const auto is_begun = [&](std::string_view magic) {
      return bytes.size() < magic.size() && magic.starts_with(bytes);
    };
    return is_begun(kGzip) || is_begun(kZstd) || is_begun(kXz);
  }
  std::unique_ptr<io::ByteInput> choose(std::string_view first, std::unique_ptr<io::ByteInput> input) override {
    std::unique_ptr<Decoder> decoder;
    if (first.starts_with(kGzip)) decoder = std::make_unique<GzipDecoder>();
    if (first.starts_with(kZstd)) decoder = std::make_unique<ZstdDecoder>();
    if (first.starts_with(kXz)) decoder = std::make_unique<XzDecoder>();
    if (decoder == nullptr) return nullptr;
    return std::make_unique<DecompressedInput>(std::move(input), std::move(decoder));
  }
};

}  // namespace

bool is_compressed_extension(std::string_view extension) {
  return std::find(kExtensions.begin(), kExtensions.end(), extension) != kExtensions.end();
}

std::unique_ptr<io::ByteInput> decompress(std::unique_ptr<io::ByteInput> source) {
  return std::make_unique<CompressedInput>(std::move(source));
}

}  // namespace tessera::cli
