"""The plug-in and the stand-ins against vLLM's source, read and never run.

  TESSERA_VLLM_SOURCE=DIR python3 -m unittest test_signatures     DIR holds the folder vllm/ of an unpacked wheel

Without that variable it reads an installed vLLM; without either it is skipped, and says so."""
import ast
import importlib.util
import os
import pathlib
import re
import unittest

import fake_vllm

HERE = pathlib.Path(__file__).resolve().parent
PLUGIN = HERE.parent / "src" / "tessera_vllm"
STUDIED = ("0.26.0", "0.33.0")
# Written as fields of the stand-ins, properties of vLLM's classes.
PROPERTIES = {"use_all2all_kernels", "use_passthrough_all2all", "w1_bias", "w2_bias", "w1_scale", "w2_scale"}
# Newer than the oldest of them; the plug-in asks whether they are there.
NEWER = ("MoEActivation.SITU", "activation.ApplyMoEActivationConfig", "FusedMoEParallelConfig.use_passthrough_all2all",
         "FusedMoEConfig.swiglu_limit", "FusedMoEConfig.swiglu_alpha", "FusedMoEConfig.swiglu_beta",
         "FusedMoEExperts.post_gemm2_hook", "FusedMoEExperts._uses_post_gemm2_hook")


def source_folder():
    named = os.environ.get("TESSERA_VLLM_SOURCE")
    if named:
        return pathlib.Path(named)
    found = importlib.util.find_spec("vllm")
    return pathlib.Path(found.origin).parent.parent if found and found.origin else None


FOLDER = source_folder()


def tree_of(path):
    return ast.parse(path.read_text())


def module_tree(module):
    path = FOLDER.joinpath(*module.split("."))
    return tree_of(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))


def definitions(tree):
    """Classes, functions and assigned names at the top of a module or class."""
    found = {}
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    found[target.id] = node
        elif isinstance(node, ast.If):  # under TYPE_CHECKING
            found.update(definitions(node))
    return found


def parameters(function):
    """(names in order, of keyword-only ones, how many have defaults)"""
    a = function.args
    return ([x.arg for x in [*a.posonlyargs, *a.args]], [x.arg for x in a.kwonlyargs], len(a.defaults))


def decorators(function):
    return {ast.unparse(node).split(".")[-1] for node in function.decorator_list} & {"staticmethod", "classmethod",
                                                                                     "property"}


@unittest.skipUnless(FOLDER, "no vLLM: neither TESSERA_VLLM_SOURCE nor an installed package")
class Signatures(unittest.TestCase):
    def compare_functions(self, ours, theirs, where):
        self.assertIsInstance(theirs, ast.FunctionDef, where)
        self.assertEqual(parameters(ours), parameters(theirs), where)
        self.assertEqual(decorators(ours), decorators(theirs), where)

    def member(self, module, class_name, name, seen=()):
        """A member of a class of vLLM, or of its bases in the same module."""
        found = definitions(module)
        node = found.get(class_name)
        if node is None:
            return None
        members = definitions(node)
        if name in members:
            return members[name]
        for base in node.bases:
            inherited = self.member(module, ast.unparse(base).split(".")[-1], name)
            if inherited is not None:
                return inherited
        return None

    def compare_class(self, ours, tree, where):
        is_enum = any("Enum" in ast.unparse(base) for base in ours.bases)
        for name, node in definitions(ours).items():
            theirs = self.member(tree, ours.name, name)
            place = f"{where}.{name}"
            if name in ("__new__", "__post_init__"):
                continue  # behaviour of the stand-in, compared by what it gives
            if theirs is None and place.endswith(NEWER):
                continue
            self.assertIsNotNone(theirs, f"{place}: vLLM has none")
            if isinstance(node, ast.FunctionDef):
                self.compare_functions(node, theirs, place)
            elif name in PROPERTIES:
                self.assertTrue(isinstance(theirs, ast.FunctionDef) and "property" in decorators(theirs), place)
            elif is_enum:
                self.assertEqual(ast.unparse(node.value), ast.unparse(theirs.value), place)

    def test_stand_ins(self):
        stand_ins = definitions(tree_of(HERE / "fake_vllm.py"))
        compared = 0
        for module, names in fake_vllm.MODULES.items():
            tree = module_tree(module)
            for name in names:
                where = f"{module}.{name}"
                if name == "current_platform":  # made on first use by the module's __getattr__
                    self.assertIn("def __getattr__", ast.unparse(tree), where)
                    continue
                theirs = definitions(tree).get(name)
                if theirs is None and where.endswith(NEWER):
                    continue
                if name != "init_logger":
                    self.assertIsNotNone(theirs, f"{where}: vLLM has none")
                if isinstance(stand_ins[name], ast.ClassDef):
                    if name == "Platform":
                        self.compare_platform(stand_ins[name], tree)
                    else:
                        self.compare_class(stand_ins[name], tree, where)
                elif isinstance(stand_ins[name], ast.FunctionDef) and isinstance(theirs, ast.FunctionDef):
                    self.compare_functions(stand_ins[name], theirs, where)
                compared += 1
        self.assertGreater(compared, 10)

    def compare_platform(self, ours, tree):
        self.compare_functions(definitions(ours)["is_cuda"], self.member(tree, "Platform", "is_cuda"), "Platform.is_cuda")

    def test_our_experts(self):
        ours = definitions(definitions(tree_of(PLUGIN / "experts.py"))["TesseraExperts"])
        tree = module_tree(f"{fake_vllm._LAYERS}.modular_kernel")
        for name, node in ours.items():
            if isinstance(node, ast.FunctionDef):
                theirs = self.member(tree, "FusedMoEExpertsModular", name)
                self.assertIsNotNone(theirs, f"{name}: vLLM never calls it")
                self.compare_functions(node, theirs, name)
        wanted = set()
        for base in ("FusedMoEExperts", "FusedMoEExpertsModular"):
            for name, node in definitions(definitions(tree)[base]).items():
                if isinstance(node, ast.FunctionDef) and any("abstract" in ast.unparse(d) for d in node.decorator_list):
                    wanted.add(name)
        self.assertGreater(len(wanted), 5)
        self.assertEqual(wanted - set(ours), set())

    def test_our_method(self):
        ours = definitions(definitions(tree_of(PLUGIN / "method.py"))["TesseraFusedMoEMethod"])
        module = module_tree(f"{fake_vllm._LAYERS}.unquantized_fused_moe_method")
        theirs = definitions(definitions(module)["UnquantizedFusedMoEMethod"])
        self.compare_functions(ours["__init__"], theirs["__init__"], "__init__")
        text = ast.unparse(theirs["__init__"])
        for word in ("self.unquantized_backend", "self.experts_cls", "select_unquantized_moe_backend"):
            self.assertIn(word, text)
        everything = ast.unparse(module)
        self.assertIn("experts_cls=self.experts_cls", everything)  # what we set is what is made
        self.assertRegex(everything, r"@CustomOp\.register\('unquantized_fused_moe'\)")

    def test_numbers_of_the_clamped_activation(self):
        text = ast.unparse(definitions(module_tree("vllm.model_executor.layers.activation"))["SwigluOAIAndMul"])
        self.assertIn("alpha: float=1.702, limit: float=7.0", text)
        self.assertIn("(up + 1) * glu", text)
        ours = (PLUGIN / "experts.py").read_text()
        self.assertIn("ALPHA, BETA, LIMIT = 1.702, 1.0, 7.0", ours)

    def test_weights_of_the_triton_back_end_stay_as_they_are(self):
        tree = module_tree(f"{fake_vllm._LAYERS}.oracle.unquantized")
        convert = ast.unparse(definitions(tree)["convert_to_unquantized_kernel_format"])
        self.assertRegex(convert, r"return \(w13_weight\.contiguous\(\), w2_weight\.contiguous\(\)\)$")
        self.assertEqual(len(re.findall(r"UnquantizedMoeBackend\.TRITON\b", convert)), 1)  # ROCm's padding

    def test_fp8_experts_are_chosen_by_the_function_that_we_replace(self):
        tree = module_tree(f"{fake_vllm._LAYERS}.oracle.fp8")
        select = ast.unparse(definitions(tree)["select_fp8_moe_backend"])
        self.assertGreaterEqual(select.count("in backend_to_kernel_cls(backend)"), 1)
        self.assertIn("k_cls.is_supported_config(k_cls, config, weight_key, activation_key, activation_format)", select)
        ours = definitions(definitions(tree_of(PLUGIN / "fp8.py"))["TesseraFp8Experts"])
        base = module_tree(f"{fake_vllm._LAYERS}.modular_kernel")
        for name, node in ours.items():
            self.compare_functions(node, self.member(base, "FusedMoEExpertsModular", name), name)

    def test_fp8_weights_of_the_triton_back_end_stay_as_they_are(self):
        tree = module_tree(f"{fake_vllm._LAYERS}.oracle.fp8")
        convert = ast.unparse(definitions(tree)["convert_to_fp8_moe_kernel_format"])
        # Named once, among those for which nothing is done.
        self.assertEqual(len(re.findall(r"Fp8MoeBackend\.TRITON\b", convert)), 1)
        self.assertRegex(convert, r"elif fp8_backend not in \[Fp8MoeBackend\.TRITON,[^\]]*\]:\n +raise")

    def test_version(self):
        found = (FOLDER / "vllm" / "_version.py").read_text()
        self.assertTrue(any(f"'{version}'" in found for version in STUDIED),
                        "compare again, then state this version here and in README.md")


if __name__ == "__main__":
    unittest.main()
