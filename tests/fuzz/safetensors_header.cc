// Any bytes as a safetensors header, with any amount of data behind it. Input: 4 bytes of data size, then the header.
// A header is refused with an Error that a terminal can show, or its tensors tile the data exactly.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

#include "io/safetensors.h"
#include "tessera/core/error.h"
#include "tessera/core/utf8.h"

namespace {

using namespace tessera;

void require(bool condition) {
  if (!condition) std::abort();
}

void check_tensor(const io::TensorInfo& info, uint64_t begin) {
  require(!info.name.empty() && info.name.size() <= io::kMaxTensorNameBytes);
  require(utf8_first_invalid(info.name) == std::string::npos);
  require(info.shape.size() <= io::kMaxTensorRank);
  require(info.begin == begin && info.end > info.begin);
  // Divided, not multiplied: another way than the parser's to compare the size with the shape.
  const uint64_t bytes = info.end - info.begin;
  const std::string digits = info.dtype == "BOOL" ? "8" : info.dtype.substr(info.dtype.find_first_of("0123456789"));
  const uint64_t bits = digits.starts_with("8") ? 8 : std::strtoull(digits.c_str(), nullptr, 10);
  require(bits == 8 || bits == 16 || bits == 32 || bits == 64);
  require(bytes % (bits / 8) == 0);
  uint64_t rest = bytes / (bits / 8);
  for (const int64_t dim : info.shape) {
    require(dim >= 1 && dim <= io::kMaxTensorDim && rest % static_cast<uint64_t>(dim) == 0);
    rest /= static_cast<uint64_t>(dim);
  }
  require(rest == 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uint32_t data_bytes = 0;
  if (size < sizeof(data_bytes)) return 0;
  std::memcpy(&data_bytes, data, sizeof(data_bytes));
  const std::string header(reinterpret_cast<const char*>(data) + sizeof(data_bytes), size - sizeof(data_bytes));
  try {
    uint64_t end = 0;
    std::set<std::string> names;
    for (const io::TensorInfo& info : io::parse_safetensors_header(header, data_bytes, "f")) {
      check_tensor(info, end);
      require(names.insert(info.name).second);
      end = info.end;
    }
    require(end == data_bytes && header.front() == '{');
  } catch (const Error& error) {
    const std::string message = error.what();
    require(message.starts_with("f: ") && message.size() < 1'000);
    require(utf8_first_invalid(message) == std::string::npos);
    for (const char c : message) require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7F);
  }
  return 0;
}
