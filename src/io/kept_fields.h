// Fields of an input record that go on to its result as they are: packed into one text, so that a batch of records
// carries them as it carries its sentences.
//
//   append_kept({KeptField::text, "", "17"}, packed);
//   KeptFields fields(packed);
//   for (KeptField field; fields.next(field);) { ... }
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace tessera::io {

struct KeptField {
  enum Kind : char {
    absent = '-',  ///< the record has no such member, or could not be read
    text = 't',    ///< characters
    json = 'j',    ///< a JSON value, as a number, null or an object
  };
  Kind kind = absent;
  std::string_view name = {};  ///< empty where the reader's kept_names() say it
  std::string_view value = {};
};

inline void append_kept(const KeptField& field, std::string& packed) {
  packed += static_cast<char>(field.kind);
  for (const std::string_view part : {field.name, field.value}) {
    const auto size = static_cast<uint32_t>(part.size());  // fields are parts of a record: kMaxTextRecordBytes
    packed.append(reinterpret_cast<const char*>(&size), sizeof(size));
    packed += part;
  }
}

class KeptFields {
 public:
  explicit KeptFields(std::string_view packed) : rest_(packed) {}

  /// The next field; its views are into the packed text.
  bool next(KeptField& field) {
    if (rest_.empty()) return false;
    field.kind = static_cast<KeptField::Kind>(rest_[0]);
    rest_.remove_prefix(1);
    field.name = take();
    field.value = take();
    return true;
  }

 private:
  std::string_view take() {
    uint32_t size = 0;
    std::memcpy(&size, rest_.data(), sizeof(size));
    const std::string_view part = rest_.substr(sizeof(size), size);
    rest_.remove_prefix(sizeof(size) + size);
    return part;
  }

  std::string_view rest_;
};

}  // namespace tessera::io
