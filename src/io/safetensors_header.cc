// The header of a safetensors file, read as events: nothing is kept but the tensors, so a hostile header costs no more
// memory than its own size.
#include <algorithm>
#include <array>
#include <optional>
#include <unordered_set>

#include "io/json.h"
#include "io/quote.h"
#include "io/safetensors.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/utf8.h"

namespace tessera::io {

namespace {

struct NamedSize {
  std::string_view name;
  uint64_t bytes;
};
constexpr std::array<NamedSize, 16> kDTypes = {{{"BOOL", 1},
                                                {"U8", 1},
                                                {"I8", 1},
                                                {"F8_E4M3", 1},
                                                {"F8_E5M2", 1},
                                                {"F8_E8M0", 1},
                                                {"I16", 2},
                                                {"U16", 2},
                                                {"F16", 2},
                                                {"BF16", 2},
                                                {"I32", 4},
                                                {"U32", 4},
                                                {"F32", 4},
                                                {"F64", 8},
                                                {"I64", 8},
                                                {"U64", 8}}};

std::string known_dtypes() {
  std::string names = "one of";
  for (const NamedSize& dtype : kDTypes) names.append(" ").append(dtype.name);
  return names;
}

std::string name_problem(std::string_view name) {
  if (name.empty()) return "an empty tensor name";
  if (name.size() > kMaxTensorNameBytes) return str_cat("a tensor name of ", name.size(), " bytes");
  for (size_t begin = 0; begin < name.size();) {
    const size_t length = std::max<size_t>(utf8_sequence_length(name.substr(begin)), 1);
    const char32_t c = utf8_decode(name.substr(begin, length));
    if (c < 0x20 || (c >= 0x7F && c < 0xA0)) return "the tensor name " + quote(name) + " with control characters";
    begin += length;
  }
  return "";
}

class HeaderParser final : public JsonEvents {
 public:
  HeaderParser(std::string_view header, uint64_t data_bytes, const std::string& where)
      : JsonEvents(header, where), data_bytes_(data_bytes) {}

  std::vector<TensorInfo> take() { return std::move(tensors_); }

  bool null() override { unexpected("null"); }
  bool boolean(bool value) override { unexpected(value ? "true" : "false"); }
  // Non-negative integers arrive as number_unsigned; a zero here was written "-0".
  bool number_integer(int64_t value) override { unexpected(value == 0 ? "-0" : str_cat(value)); }
  bool number_float(double, const std::string& literal) override { unexpected(escaped(literal)); }

  bool number_unsigned(uint64_t value) override {
    if (place_ == Place::shape_items) {
      add_dimension(value);
    } else if (place_ == Place::offset_items) {
      if (num_offsets_ == 2) fail("more than 2 offsets", "2: begin and end");
      (num_offsets_ == 0 ? tensors_.back().begin : tensors_.back().end) = value;
      ++num_offsets_;
    } else {
      unexpected(str_cat(value));
    }
    return true;
  }

  bool string(std::string& value) override {
    if (place_ == Place::dtype) {
      const auto known = std::find_if(kDTypes.begin(), kDTypes.end(), [&](const auto& d) { return d.name == value; });
      if (known == kDTypes.end()) fail(quote(value), known_dtypes());
      tensors_.back().dtype = value;
      element_bytes_ = known->bytes;
      place_ = Place::tensor;
    } else if (place_ == Place::metadata_value) {
      place_ = Place::metadata;
    } else {
      unexpected(quote(value));
    }
    return true;
  }

  bool start_object(size_t) override {
    enter();
    if (place_ == Place::document) {
      place_ = Place::entries;
    } else if (place_ == Place::metadata_entry) {
      place_ = Place::metadata;
    } else if (place_ == Place::entry) {
      place_ = Place::tensor;
      has_shape_ = false;
      num_offsets_ = 0;
      element_bytes_ = 0;
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(std::string& name) override {
    if (place_ == Place::entries) {
      begin_entry(name);
    } else if (place_ == Place::metadata) {
      if (!metadata_keys_.insert(name).second) fail("the key " + quote(name) + " twice", "it once");
      place_ = Place::metadata_value;
    } else {
      begin_field(name);
    }
    return true;
  }

  bool end_object() override {
    leave();
    if (place_ == Place::tensor) finish_tensor();
    place_ = Place::entries;
    return true;
  }

  bool start_array(size_t) override {
    enter();
    if (place_ == Place::shape) {
      place_ = Place::shape_items;
    } else if (place_ == Place::offsets) {
      place_ = Place::offset_items;
    } else {
      unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    leave();
    if (place_ == Place::offset_items && num_offsets_ != 2) fail(str_cat(num_offsets_, " offsets"), "2: begin and end");
    place_ = Place::tensor;
    return true;
  }

 private:
  /// What the next event belongs to.
  enum class Place : uint8_t {
    document,
    entries,  // between the members of the header
    entry,    // the value of a tensor's name
    tensor,   // between a tensor's fields
    dtype,
    shape,
    shape_items,
    offsets,
    offset_items,
    metadata_entry,
    metadata,
    metadata_value,
  };

  std::string described_place() const {
    switch (place_) {
      case Place::document:
      case Place::entries: return where();
      case Place::metadata_entry:
      case Place::metadata:
      case Place::metadata_value: return where() + ": __metadata__";
      case Place::dtype: return tensor_place() + ": dtype";
      case Place::shape:
      case Place::shape_items: return tensor_place() + ": shape";
      case Place::offsets:
      case Place::offset_items: return tensor_place() + ": data_offsets";
      case Place::entry:
      case Place::tensor: break;
    }
    return tensor_place();
  }

  std::string tensor_place() const { return where() + ": tensor " + quote(tensors_.back().name); }

  [[noreturn]] void fail(const std::string& got, const std::string& expected) const {
    throw Error(described_place(), got, expected);
  }

  [[noreturn]] void unexpected(const std::string& got) const {
    switch (place_) {
      case Place::dtype: fail(got, known_dtypes());
      case Place::shape: fail(got, "an array of integers");
      case Place::shape_items: fail(got, str_cat("integers from 1 to ", kMaxTensorDim));
      case Place::offsets: fail(got, "an array of 2 offsets: begin and end");
      case Place::offset_items: fail(got, "byte offsets");
      case Place::metadata_value: fail(got, "strings only");
      default: fail(got, "an object");
    }
  }

  void begin_entry(const std::string& name) {
    if (name == "__metadata__") {
      if (has_metadata_) fail("__metadata__ twice", "it once");
      has_metadata_ = true;
      place_ = Place::metadata_entry;
      return;
    }
    const std::string problem = name_problem(name);
    if (!problem.empty()) fail(problem, str_cat("1 to ", kMaxTensorNameBytes, " bytes of text"));
    if (!names_.insert(name).second) fail("tensor " + quote(name) + " twice", "it once");
    if (tensors_.size() == kMaxTensors) fail("more tensors", str_cat("at most ", kMaxTensors));
    tensors_.emplace_back().name = name;
    place_ = Place::entry;
  }

  void begin_field(const std::string& name) {
    bool again = false;
    if (name == "dtype") {
      again = element_bytes_ != 0;
      place_ = Place::dtype;
    } else if (name == "shape") {
      again = has_shape_;
      has_shape_ = true;
      place_ = Place::shape;
    } else if (name == "data_offsets") {
      again = num_offsets_ != 0;
      place_ = Place::offsets;
    } else {
      fail("the field " + quote(name), "dtype, shape and data_offsets");
    }
    if (again) fail("the field twice", "it once");
  }

  void add_dimension(uint64_t value) {
    std::vector<int64_t>& shape = tensors_.back().shape;
    if (value < 1 || value > static_cast<uint64_t>(kMaxTensorDim)) {
      fail(str_cat("the size ", value), str_cat("1 to ", kMaxTensorDim));
    }
    if (shape.size() == kMaxTensorRank) fail("more dimensions", str_cat("at most ", kMaxTensorRank));
    shape.push_back(static_cast<int64_t>(value));
  }

  void finish_tensor() const {
    const TensorInfo& info = tensors_.back();
    if (element_bytes_ == 0) fail("no dtype", "dtype, shape and data_offsets");
    if (!has_shape_) fail("no shape", "dtype, shape and data_offsets");
    if (num_offsets_ == 0) fail("no data_offsets", "dtype, shape and data_offsets");
    uint64_t bytes = element_bytes_;
    for (const int64_t dim : info.shape) {
      if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes)) {
        fail("a shape whose size in bytes overflows", str_cat("at most the ", data_bytes_, " bytes of data"));
      }
    }
    const std::string offsets = str_cat("data_offsets [", info.begin, ", ", info.end, "]");
    if (info.begin > info.end) fail(offsets, "begin before end");
    if (info.end > data_bytes_) fail(offsets, str_cat("an end within the ", data_bytes_, " bytes of data"));
    if (info.end - info.begin != bytes) fail(offsets, str_cat(bytes, " bytes for its shape and dtype"));
  }

  uint64_t data_bytes_;
  std::vector<TensorInfo> tensors_;  // the last one is being read
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> metadata_keys_;
  Place place_ = Place::document;
  bool has_metadata_ = false;
  bool has_shape_ = false;
  int num_offsets_ = 0;
  uint64_t element_bytes_ = 0;  // 0 = no dtype yet
};

/// Whether `header` opens more tensors than are allowed. Takes no memory: of a hostile header nothing else is looked
/// at, and text that is no JSON is left for the parser to refuse.
bool has_too_many_tensors(std::string_view header) {
  constexpr size_t kMinEntryBytes = 32;  // the fields' names and their quotes alone are longer
  if (header.size() / kMinEntryBytes <= kMaxTensors) return false;
  size_t num_tensors = 0;
  int level = 0;
  std::string_view last_string;
  for (size_t i = 0; i < header.size(); ++i) {
    if (header[i] == '"') {
      const size_t begin = i + 1;
      for (++i; i < header.size() && header[i] != '"'; ++i) i += header[i] == '\\' ? 1 : 0;
      last_string = header.substr(begin, std::min(i, header.size()) - begin);
    } else if (header[i] == '{') {
      // A name with escapes may be __metadata__ too; the parser counts those.
      const bool is_tensor = level == 1 && last_string != "__metadata__" && last_string.find('\\') == last_string.npos;
      num_tensors += is_tensor ? 1 : 0;
      ++level;
    } else if (header[i] == '}') {
      --level;
    }
  }
  return num_tensors > kMaxTensors;
}

/// `tensors`, sorted by their offsets, must cover [0, data_bytes) without gap or overlap. None of them is empty.
void check_tiling(const std::vector<TensorInfo>& tensors, uint64_t data_bytes, const std::string& where) {
  uint64_t end = 0;
  std::string before = "the start of the data";
  for (const TensorInfo& info : tensors) {
    if (info.begin != end) {
      const char* problem = info.begin < end ? " (an overlap)" : " (a hole)";
      throw Error(where + ": tensor " + quote(info.name),
                  str_cat("data_offsets [", info.begin, ", ", info.end, "]", problem),
                  str_cat("begin ", end, ", ", before));
    }
    end = info.end;
    before = "the end of " + quote(info.name);
  }
  if (end != data_bytes) {
    throw Error(where, str_cat(data_bytes, " bytes of data"), str_cat(end, ", ", before));
  }
}

}  // namespace

std::vector<TensorInfo> parse_safetensors_header(std::string_view header, uint64_t data_bytes,
                                                 const std::string& where) {
  if (header.empty() || header.front() != '{') {
    throw Error(where, header.empty() ? "an empty header" : "a header that starts with " + quote(header, 20), "'{'");
  }
  const char last = header[header.find_last_not_of(' ')];
  if (last != '}') {
    throw Error(where, "a header that ends in " + quote({&last, 1}), "'}' and spaces only");
  }
  if (has_too_many_tensors(header)) throw Error(where, "more tensors", str_cat("at most ", kMaxTensors));
  HeaderParser parser(header, data_bytes, where);
  parser.parse();
  std::vector<TensorInfo> tensors = parser.take();
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  check_tiling(tensors, data_bytes, where);
  return tensors;
}

}  // namespace tessera::io
