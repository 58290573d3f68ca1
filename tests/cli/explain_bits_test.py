"""tessera explain bits: the tensor cores' arithmetic on one dot product."""
import re
import struct
import unittest

from cli_support import CliTest, tessera


def explain(*arguments):
    return tessera("explain", "bits", *arguments)


class ExplainBitsTest(CliTest):
    def results(self, *arguments):
        """The bits of every instruction's result."""
        result = explain(*arguments)
        self.assert_code(result, 0)
        self.assertLessEqual(max(map(len, result.lines)), 100)
        return [int(bits, 16) for bits in re.findall(r"(?m)^  D = .*, bits 0x([0-9A-F]{8})$", result.out)]

    def test_a_sum_that_is_exact_is_what_anyone_computes(self):
        bits = self.results("--a", "1,2,3", "--b", "4,5,6", "--c", "0.5")
        self.assertEqual(bits, [struct.unpack("<I", struct.pack("<f", 32.5))[0]])

    def test_a_small_term_beside_large_ones_that_cancel_is_kept_to_25_bits(self):
        kept = explain("--a=1048576,-1048576,0.03125", "--b", "1,1,1")  # 2^20 and 2^-5
        self.assert_code(kept, 0)
        self.assertIn("D = 0.03125, bits 0x3D000000", kept.out)
        lost = explain("--a=1048576,-1048576,0.015625", "--b", "1,1,1")
        self.assertIn("D = 0, bits 0x00000000", lost.out)
        self.assertRegex(lost.out, r"(?m)^  0.015625 \* 1 .* 0 \*$")
        self.assertRegex(lost.out, r"(?m)^fp64 +0.015625; the tensor cores' result is -0.0156 away$")

    def test_long_sums_take_several_instructions_chained_through_c(self):
        ones = ",".join(["1"] * 40)
        self.assertEqual(self.results("--a", ones, "--b", ones), [0x41800000, 0x42000000, 0x42200000])
        self.assertEqual(self.results("--type", "e4m3", "--a", ones, "--b", ones), [0x42000000, 0x42200000])

    def test_patterns_name_what_no_decimal_does(self):
        self.assertEqual(self.results("--type", "f16", "--a", "0x7C00", "--b", "0"), [0x7FFFFFFF])  # infinity times 0
        self.assertEqual(self.results("--a", "0x8000", "--b", "1", "--c", "0x00000001"), [0x00000001])
        result = explain("--type", "e4m3", "--a", "0x7F", "--b", "1")
        self.assertIn("infinite or not a number", result.out)

    def test_what_is_cut_to_zero_is_plus_zero(self):
        result = explain("--a", "0x9780", "--b", "0x1280")  # -2^-80 times 2^-90
        self.assertIn("D = 0, bits 0x00000000", result.out)
        self.assertRegex(result.out, r"(?m)^  -8.27\S* \* 8.07\S* .* -170 +0 \*$")

    def test_wrong_calls_say_where(self):
        self.assert_error(explain("--a", "1,2", "--b", "1"), 2, "--b", "as many as --a has, 2")
        self.assert_error(explain("--a", "1,x", "--b", "1,2"), 2, "--a", "'x'")
        self.assert_error(explain("--a", "1", "--b", "0x10000"), 2, "--b", "0xFFFF")
        self.assert_error(explain("--type", "f32", "--a", "1", "--b", "1"), 2, "--type", "bf16, f16 or e4m3")
        self.assert_error(explain("--a", "1"), 2, "--b")


if __name__ == "__main__":
    unittest.main()
