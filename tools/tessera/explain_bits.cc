// tessera explain bits: what the tensor cores make of one dot product, instruction by instruction, without a GPU.
#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "exit_codes.h"
#include "moe/judge/tensor_core.h"
#include "output.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "text_format.h"

namespace tessera::cli {

namespace {

using moe::TensorCoreRules;
using moe::TensorCoreStep;
using moe::TensorCoreType;

const std::string kExplainBitsFooter =
    "Examples:\n"
    "  tessera explain bits --a 1.5,-1.5,0.0001 --b 1.5,1.5,1\n"
    "  tessera explain bits --type e4m3 --a 1,0.01 --b 448,0.02 --c 3.5\n"
    "  tessera explain bits --type f16 --a 0x3C00,0x0001 --b 0x3C00,0x7BFF\n"
    "Numbers are rounded to the type; 0x... are bit patterns of it (of fp32 for --c). An instruction sums 16\n"
    "products, of e4m3 32: longer dot products take several, missing ones are zero. 'aligned' is what is kept of\n"
    "a term, in units of 2^(top - kept bits), where top is the largest exponent, -133 at least; '*' marks terms\n"
    "that lost bits.\n";

struct ExplainBitsOptions {
  std::string type = "bf16";
  std::vector<std::string> a, b;
  std::string c = "0";
};

// The whole text as a number; throws Error naming the option.
double number(const char* option, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0') throw Error(option, "'" + text + "'", "numbers, or bit patterns as 0x3F80");
  return value;
}

// The pattern that 0x... gives, if the text is one.
bool is_pattern(const char* option, const std::string& text, uint32_t most, uint32_t& bits) {
  if (text.size() < 3 || text[0] != '0' || (text[1] != 'x' && text[1] != 'X')) return false;
  const auto [end, error] = std::from_chars(text.data() + 2, text.data() + text.size(), bits, 16);
  if (error != std::errc() || end != text.data() + text.size() || bits > most)
    throw Error(option, "'" + text + "'", format_text("a bit pattern up to 0x%X", most));
  return true;
}

std::vector<uint16_t> patterns(const char* option, TensorCoreType type, const std::vector<std::string>& texts) {
  std::vector<uint16_t> values;
  for (const std::string& text : texts) {
    uint32_t bits = 0;
    const uint32_t most = type == TensorCoreType::e4m3 ? 0xFFu : 0xFFFFu;
    values.push_back(is_pattern(option, text, most, bits) ? static_cast<uint16_t>(bits)
                                                          : moe::nearest_operand(type, number(option, text)));
  }
  return values;
}

float start_value(const std::string& text) {
  uint32_t bits = 0;
  if (is_pattern("--c", text, 0xFFFFFFFFu, bits)) return std::bit_cast<float>(bits);
  return static_cast<float>(number("--c", text));
}

std::string term_line(const TensorCoreRules& rules, const TensorCoreStep& step, size_t i, const std::string& name) {
  const TensorCoreStep::Term& term = step.terms[i];
  if (step.special) return format_text("  %-26s %16.9g\n", name.c_str(), term.value);
  const double kept = std::ldexp(static_cast<double>(term.aligned), step.top - rules.term_bits);
  const bool counts = term.exponent != std::numeric_limits<int32_t>::min();
  return format_text("  %-26s %16.9g %8s %14lld%s\n", name.c_str(), term.value,
                     counts ? std::to_string(term.exponent).c_str() : "-", static_cast<long long>(term.aligned),
                     kept == term.value ? "" : " *");
}

// One instruction: its terms that are not zero, their sum, what is stored.
std::string step_text(const TensorCoreRules& rules, const TensorCoreStep& step, const std::vector<uint16_t>& a,
                      const std::vector<uint16_t>& b) {
  std::string text = format_text("  %-26s %16s %8s %14s\n", "term", "value", "exponent", "aligned");
  for (size_t i = 0; i < a.size(); ++i) {
    if (step.terms[i].value == 0.0) continue;
    const std::string name =
        format_text("%.7g * %.7g", moe::operand_value(rules, a[i]), moe::operand_value(rules, b[i]));
    text += term_line(rules, step, i, name);
  }
  text += term_line(rules, step, a.size(), "C");
  if (step.special) {
    text += "  a term is infinite or not a number: nothing is aligned\n";
  } else if (step.sum != 0) {
    const int32_t unit = step.top - rules.term_bits;
    const double exact = std::ldexp(static_cast<double>(step.sum), unit);
    text +=
        format_text("  top = %d, units of 2^%d; sum %lld = %.17g%s\n", step.top, unit, static_cast<long long>(step.sum),
                    exact, exact == static_cast<double>(step.result) ? "" : ", cut");
  }
  return text + format_text("  D = %.9g, bits 0x%08X\n", static_cast<double>(step.result),
                            std::bit_cast<uint32_t>(step.result));
}

std::string pattern_list(TensorCoreType type, const std::vector<uint16_t>& values) {
  std::string text;
  for (const uint16_t bits : values)
    text += format_text(type == TensorCoreType::e4m3 ? "%s0x%02X" : "%s0x%04X", text.empty() ? "" : " ", bits);
  return text;
}

TensorCoreType type_of(const std::string& name) {
  for (const TensorCoreType type : {TensorCoreType::bf16, TensorCoreType::f16, TensorCoreType::e4m3}) {
    if (moe::tensor_core_type_name(type) == name) return type;
  }
  throw Error("--type", name, "bf16, f16 or e4m3");
}

int explain(const ExplainBitsOptions& options) {
  const TensorCoreType type = type_of(options.type);
  const TensorCoreRules rules = moe::tensor_core_rules(type);
  const std::vector<uint16_t> a = patterns("--a", type, options.a), b = patterns("--b", type, options.b);
  if (a.size() != b.size())
    throw Error("--b", str_cat(b.size(), " numbers"), str_cat("as many as --a has, ", a.size()));
  const float start = start_value(options.c);
  const auto count = static_cast<size_t>(rules.num_products);
  const size_t num_steps = (a.size() + count - 1) / count;
  std::string text = labelled(
      "type", str_cat(options.type, ": ", count, " products at once, ", rules.term_bits,
                      " bits kept below the largest exponent, result cut to ", rules.result_bits, " fraction bits"));
  text += labelled("a", pattern_list(type, a)) + labelled("b", pattern_list(type, b));
  float c = start;
  double exact = static_cast<double>(start);
  for (size_t step_idx = 0; step_idx < num_steps; ++step_idx) {
    const auto part = [&](const std::vector<uint16_t>& values) {
      const auto begin = values.begin() + static_cast<ptrdiff_t>(step_idx * count);
      std::vector<uint16_t> taken(begin, begin + static_cast<ptrdiff_t>(std::min(count, a.size() - step_idx * count)));
      taken.resize(count);
      return taken;
    };
    const std::vector<uint16_t> left = part(a), right = part(b);
    TensorCoreStep step;
    text += format_text("\ninstruction %zu of %zu, C = %.9g\n", step_idx + 1, num_steps, static_cast<double>(c));
    c = moe::multiply_add(rules, left, right, c, &step);
    for (size_t i = 0; i < count; ++i) exact += step.terms[i].value;
    text += step_text(rules, step, left, right);
  }
  text += "\n" + labelled("fp64", format_text("%.17g; the tensor cores' result is %.3g away", exact,
                                              static_cast<double>(c) - exact));
  Output output("-");
  output.write(text);
  output.commit();
  return kAllOk;
}

}  // namespace

Command add_explain_bits(CLI::App& app) {
  auto options = std::make_shared<ExplainBitsOptions>();
  app.add_option("--type", options->type, "Of the operands: bf16, f16 or e4m3")
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--a", options->a, "First factors, comma-separated")->type_name("NUMBER")->required()->delimiter(',');
  app.add_option("--b", options->b, "Second factors, as many")->type_name("NUMBER")->required()->delimiter(',');
  app.add_option("--c", options->c, "What the sum starts from, fp32")->type_name("NUMBER")->capture_default_str();
  app.footer(kExplainBitsFooter);
  return [options] { return explain(*options); };
}

}  // namespace tessera::cli
