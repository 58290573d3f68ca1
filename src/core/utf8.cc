#include "tessera/core/utf8.h"

#include <cstring>

namespace tessera {

namespace {

/// Whether the `num_words` * 8 bytes at `bytes` are all below 0x80.
template <int num_words>
bool is_ascii(const char* bytes) {
  uint64_t words[num_words];
  std::memcpy(words, bytes, sizeof(words));
  uint64_t any = 0;
  for (const uint64_t word : words) any |= word;
  return (any & 0x8080808080808080u) == 0;
}

/// The first byte from `position` on that is not below 0x80, or the end.
size_t ascii_end(std::string_view text, size_t position) {
  const char* const bytes = text.data();
  while (position + 32 <= text.size() && is_ascii<4>(bytes + position)) position += 32;
  while (position + 8 <= text.size() && is_ascii<1>(bytes + position)) position += 8;
  while (position < text.size() && static_cast<unsigned char>(bytes[position]) < 0x80) ++position;
  return position;
}

}  // namespace

size_t utf8_sequence_length(std::string_view text) {
  if (text.empty()) return 0;
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  size_t length = 0;
  unsigned char low = 0x80;  // bounds of the second byte; they exclude overlong forms and surrogates
  unsigned char high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return 0;
  }
  if (text.size() < length || byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return length;
}

size_t utf8_first_invalid(std::string_view text) {
  size_t position = ascii_end(text, 0);
  while (position < text.size()) {
    const size_t length = utf8_sequence_length(text.substr(position));
    if (length == 0) return position;
    position += length;
    if (length == 1) position = ascii_end(text, position);
  }
  return std::string_view::npos;
}

char32_t utf8_decode(std::string_view sequence) {
  const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(sequence[i])); };
  switch (sequence.size()) {
    case 1: return byte(0);
    case 2: return (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F);
    case 3: return (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    default: return (byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
  }
}

void utf8_append(std::string& out, char32_t code_point) {
  const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

}  // namespace tessera
