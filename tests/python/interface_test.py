"""The package as a whole: what it imports, what its __init__.pyi promises, what it makes of the C headers, forks, DLPack."""
import ast
import ctypes
import gc
import importlib.metadata
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import textwrap
import typing
import unittest
import unittest.mock

import numpy
import tessera
from python_support import Case, Producer, arguments
from tessera import _native

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PACKAGE = pathlib.Path(tessera.__file__).parent


def python(code, **environment):
    """(exit code, output) of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], text=True, timeout=120, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env={**os.environ, **environment})
    return done.returncode, done.stdout


class Imports(unittest.TestCase):
    def test_no_framework_is_imported(self):
        """Packages of these names lie in the way; they break whoever imports them."""
        with tempfile.TemporaryDirectory() as folder:
            for name in ("torch", "transformers", "cupy", "jax", "ml_dtypes"):
                (pathlib.Path(folder) / f"{name}.py").write_text("raise SystemExit('imported')")
            path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
            code, output = python("""
                import numpy, tessera
                x, w = numpy.ones((2, 8), "f4"), numpy.ones((1, 16, 8), "f4")
                out = tessera.moe(x, w, w[:, :8].copy(), numpy.zeros((2, 1), "i4"), numpy.ones((2, 1), "f4"))
                tessera.doctor()
                print(out.shape)
                """, PYTHONPATH=path)
            self.assertEqual((code, output.strip()), (0, "(2, 8)"))
            self.assertEqual(python("import torch", PYTHONPATH=path)[1].strip(), "imported")

    def test_without_its_library_it_says_so(self):
        code, output = python("import tessera", TESSERA_LIBRARY="/nowhere/libtessera.so")
        self.assertEqual(code, 1)
        self.assertIn("ImportError: tessera: cannot load its shared library /nowhere/libtessera.so", output)
        code, output = python("import tessera", TESSERA_LIBRARY="libc.so.6")
        self.assertIn("ImportError: tessera: cannot load", output)

    def test_version(self):
        project = re.search(r"project\(tessera VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())[1]
        self.assertEqual(tessera.__version__, project)
        try:
            self.assertEqual(importlib.metadata.version("tessera"), project)
        except importlib.metadata.PackageNotFoundError:
            pass  # run from the source tree


class TypedInterface(unittest.TestCase):
    """__init__.pyi against the running package."""

    def setUp(self):
        self.tree = ast.parse((PACKAGE / "__init__.pyi").read_text())

    def parameters(self, function):
        """{name: (kind, default)} of a function's definition."""
        given, found = function.args, {}
        positional = [*given.posonlyargs, *given.args]
        defaults = [None] * (len(positional) - len(given.defaults)) + given.defaults
        for kind, names, values in (("POSITIONAL_OR_KEYWORD", positional, defaults),
                                    ("KEYWORD_ONLY", given.kwonlyargs, given.kw_defaults)):
            for argument, value in zip(names, values):
                found[argument.arg] = kind, inspect.Parameter.empty if value is None else ast.literal_eval(value)
        return found

    def agree(self, definition, function):
        real = {name: (parameter.kind.name, parameter.default)
                for name, parameter in inspect.signature(function).parameters.items()}
        self.assertEqual(list(self.parameters(definition).items()), list(real.items()), definition.name)

    def test_signatures(self):
        compared = 0
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef):
                self.agree(node, getattr(tessera, node.name))
                compared += 1
            elif isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef):
                        self.agree(member, getattr(getattr(tessera, node.name), member.name))
                        compared += 1
        self.assertGreater(compared, 9)

    def test_help_says_what_the_stubs_say(self):
        for node in self.tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
                self.assertEqual(inspect.getdoc(getattr(tessera, node.name)), ast.get_docstring(node), node.name)
        for function in (tessera.moe, tessera.route, tessera.MoELayer.__call__, tessera.Classifier.predict):
            self.assertIn("return", typing.get_type_hints(function))
        self.assertIn("topk_ids [T, k] int32 or int64", tessera.moe.__doc__)

    def test_a_difference_is_found(self):
        definition = next(n for n in self.tree.body if isinstance(n, ast.FunctionDef) and n.name == "moe")
        definition.args.kwonlyargs[0].arg = "gate_up_biases"
        with self.assertRaises(AssertionError):
            self.agree(definition, tessera.moe)

    def test_public_names(self):
        promised = {"__version__"}
        for node in self.tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                promised.add(node.name)
            elif isinstance(node, ast.Assign):
                promised.add(node.targets[0].id)
        self.assertEqual(promised, set(tessera.__all__))
        self.assertEqual([name for name in promised if not hasattr(tessera, name)], [])

    def members(self, class_name):
        node = next(n for n in self.tree.body if isinstance(n, ast.ClassDef) and n.name == class_name)
        return [member.target.id for member in node.body if isinstance(member, ast.AnnAssign)]

    def test_members(self):
        for kind in (tessera.Prediction, tessera.Device, tessera.Doctor, tessera.MoELimits):
            self.assertEqual(tuple(self.members(kind.__name__)), kind._fields)
        case = Case()
        given, _ = arguments(case)
        layer = tessera.MoELayer(*given[1:3], top_k=2)
        model = tessera.Classifier(ROOT / "models" / "movie-reviews", device="cpu")
        for instance in (layer, model):
            for name in self.members(type(instance).__name__):
                self.assertTrue(hasattr(instance, name), name)

    def test_names_of_options(self):
        def names(choices):  # of one name alone, not a tuple
            return choices if isinstance(choices, tuple) else (choices,)
        literals = {node.targets[0].id: names(ast.literal_eval(node.value.slice)) for node in self.tree.body
                    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)}
        self.assertEqual(literals, {"Activation": _native.ACTIVATIONS, "GateUpOrder": _native.GATE_UP_ORDERS,
                                    "WeightFormat": _native.WEIGHT_FORMATS, "ScaleGrid": _native.SCALE_GRIDS + _native.CHANNEL_GRIDS,
                                    "RouterKind": _native.ROUTER_KINDS})
        self.assertEqual(literals, {name: typing.get_args(getattr(tessera, name)) for name in literals})

    def test_the_package_says_that_it_is_typed(self):
        self.assertTrue((PACKAGE / "py.typed").exists())


class Headers(unittest.TestCase):
    """The structures and numbers of _native against the C headers."""

    STRUCTURES = {"tessera_moe_config": _native.MoEConfig, "tessera_moe_weights": _native.MoEWeights,
                  "tessera_moe_inputs": _native.MoEInputs, "tessera_router_config": _native.RouterConfig,
                  "tessera_classifier_options": _native.ClassifierOptions,
                  "tessera_classifier_info": _native.ClassifierInfo,
                  "tessera_classifier_outputs": _native.ClassifierOutputs}
    TYPES = {"size_t": ctypes.c_size_t, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float,
             "double": ctypes.c_double}

    def setUp(self):
        text = "".join((ROOT / "include" / "tessera" / name).read_text()
                       for name in ("tessera.h", "tessera_moe.h", "tessera_quantize.h", "tessera_router.h",
                                    "tessera_checkpoint.h", "tessera_classifier.h"))
        self.text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)

    def members(self, name):
        body = re.search(rf"typedef struct {name} {{(.*?)}}", self.text, re.S)[1]
        for declaration in filter(str.strip, body.split(";")):
            kind, names = re.fullmatch(r"\s*(?:const )?(\w+\s?\*?)\s*(.*)", declaration.strip(), re.S).groups()
            for member in names.split(","):
                yield member.strip(), kind.replace(" ", "")

    def test_structures(self):
        for name, structure in {**self.STRUCTURES, "tessera_moe_limit_values": _native.MoELimitValues}.items():
            expected = []
            for member, kind in self.members(name):
                pointer = ctypes.c_char_p if kind == "char*" else ctypes.c_void_p
                expected.append((member, pointer if kind.endswith("*") else self.TYPES[kind]))
            self.assertEqual(structure._fields_, expected, name)

    def test_sizes(self):
        """A structure of the package's size is taken, one that is a byte longer is the library's no more."""
        lib, config, options = _native.lib, _native.new(_native.MoEConfig), _native.new(_native.ClassifierOptions)
        layer = tessera.MoELayer(numpy.zeros((1, 16, 8), numpy.float32), numpy.zeros((1, 8, 8), numpy.float32), top_k=1)
        calls = {"config": (_native.MoEConfig, lambda made: lib.tessera_moe_create(made, None, ctypes.c_void_p())),
                 "weights": (_native.MoEWeights, lambda made: lib.tessera_moe_create(config, made, ctypes.c_void_p())),
                 "inputs": (_native.MoEInputs, lambda made: lib.tessera_moe_run(
                     layer._native.handle.pointer, bytes(made), None, 0, None)),
                 "options": (_native.ClassifierOptions, lambda made: lib.tessera_classifier_load(
                     b"", made, ctypes.c_void_p()))}
        for where, (structure, call) in calls.items():
            made = structure(struct_bytes=ctypes.sizeof(structure) + 1)
            self.assertEqual(call(made), 1)
            self.assertIn(f"{where} struct_bytes: got {made.struct_bytes}, expected what the init function writes, at "
                          f"most this library's {ctypes.sizeof(structure)}", lib.tessera_last_error().decode())
        for structure in self.STRUCTURES.values():
            if structure is not _native.MoEInputs:
                self.assertEqual(_native.new(structure).struct_bytes, ctypes.sizeof(structure))
        self.assertEqual(options.device, _native.CPU)

    def test_limits(self):
        known = _native.lib.tessera_moe_limits().contents
        self.assertEqual(known.struct_bytes, ctypes.sizeof(_native.MoELimitValues))
        include = ROOT / "include" / "tessera"
        headers = "".join((include / name).read_text() for name in ("moe/limits.h", "core/thread_pool.h"))
        named = {"kWidthMultiple": "width_multiple", "kMaxExperts": "max_experts", "kMaxTopK": "max_top_k",
                 "kAlignment": "alignment", "kMaxThreads": "max_threads"}
        stated = {named[name]: int(value) for name, value in re.findall(r"constexpr \w+ (\w+) = (\d+);", headers)}
        self.assertEqual(tessera.moe_limits()._asdict(), stated)

    def test_enumerations(self):
        def numbers(enum, prefix):
            body = re.search(rf"typedef enum {enum} {{(.*?)}}", self.text, re.S)[1]
            return {name.lower(): int(value) for name, value in re.findall(rf"{prefix}(\w+) = (\d+)", body)}
        self.assertEqual(numbers("tessera_activation", "TESSERA_"), {n: i for i, n in enumerate(_native.ACTIVATIONS)})
        self.assertEqual(numbers("tessera_gate_up_order", "TESSERA_"),
                         {n: i for i, n in enumerate(_native.GATE_UP_ORDERS)})
        self.assertEqual(numbers("tessera_weight_format", "TESSERA_"),
                         {n.replace("-", "_"): i for i, n in enumerate(_native.WEIGHT_FORMATS)})
        self.assertEqual(numbers("tessera_router_kind", "TESSERA_"), {n: i for i, n in enumerate(_native.ROUTER_KINDS)})
        self.assertEqual(numbers("tessera_precision", "TESSERA_PRECISION_"),
                         {n: i for i, n in enumerate(_native.PRECISIONS)})
        self.assertEqual(numbers("tessera_dtype", "TESSERA_"), {"f32": 0, "f16": 1, "bf16": 2})
        self.assertEqual(_native.DTYPES, {"float32": 0, "float16": 1, "bfloat16": 2})

    def test_every_function_is_declared(self):
        declared = set(re.findall(r"\b(tessera_\w+)\(", self.text))
        self.assertLessEqual({name for name, _, _ in _native._PROTOTYPES}, declared)


class DLPack(unittest.TestCase):
    def setUp(self):
        given, self.named = arguments(Case())
        self.given = given
        self.expected = tessera.moe(*given, **self.named)

    def test_every_kind_of_capsule_is_read_and_given_back_once(self):
        for options in ({}, {"versioned": False}, {"strided": False}, {"device": (3, 0)}):
            producers = [Producer(array, **options) for array in self.given]
            layer = tessera.MoELayer(*producers[1:3], top_k=3, **self.named)
            out = Producer(numpy.zeros_like(self.given[0]), **options)
            workspace = Producer(numpy.zeros(layer.workspace_bytes(9), numpy.uint8), **options)
            self.assertIs(layer(producers[0], *producers[3:], out=out, workspace=workspace), out)
            self.assertTrue(numpy.array_equal(out.array, self.expected))
            for producer in (producers[0], *producers[3:], out, workspace):
                self.assertEqual((producer.made, producer.deleted), (1, 1), options)
            for producer in producers[1:3]:  # the layer keeps its weights
                self.assertEqual((producer.made, producer.deleted), (1, 0), options)
            del layer
            gc.collect()
            for producer in producers[1:3]:
                self.assertEqual((producer.made, producer.deleted), (1, 1), options)

    def test_capsules_of_refused_calls_are_given_back(self):
        producer = Producer(self.given[0].astype(numpy.float64))
        with self.assertRaises(TypeError) as raised:
            tessera.moe(producer, *self.given[1:])
        del raised
        gc.collect()
        self.assertEqual((producer.made, producer.deleted), (1, 1))

    def test_no_reference_is_left(self):
        array = self.given[0].copy()
        before = sys.getrefcount(array)
        for _ in range(5):
            tessera.moe(array, *self.given[1:], **self.named)
            tessera.moe(self.given[0], *self.given[1:], out=array, **self.named)
        self.assertEqual(sys.getrefcount(array), before)


class Forks(unittest.TestCase):
    def in_child(self, work):
        """Exit code of a forked child that runs `work`."""
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = work()
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def test_the_cpu_works_in_a_child(self):
        given, named = arguments(Case(tokens=30))
        layer = tessera.MoELayer(*given[1:3], top_k=3, num_threads=2, **named)
        model = tessera.Classifier(ROOT / "models" / "movie-reviews", device="cpu", num_threads=2)
        expected, label = layer(given[0], *given[3:]), model("A wonderful film").label

        def work():
            right = numpy.array_equal(layer(given[0], *given[3:]), expected)
            right = right and numpy.array_equal(tessera.moe(*given, **named), expected)
            return 0 if right and model("A wonderful film").label == label else 1

        tessera.moe(*given, **named)
        self.assertEqual(self.in_child(work), 0)
        self.assertTrue(numpy.array_equal(layer(given[0], *given[3:]), expected))

    def test_a_gpu_that_the_parent_used_is_refused_in_a_child(self):
        """As if this process had used one: what the child says does not depend on there being a GPU."""
        code, output = python("""
            import os, tessera
            from tessera import _native
            _native._Process.cuda_used = True
            child = os.fork()
            if child == 0:
                for call in (_native.use_cuda, tessera.doctor,
                             lambda: tessera.Classifier("models/movie-reviews", device="cuda")):
                    try:
                        call()
                    except tessera.TesseraError as error:
                        print(error, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            """)
        self.assertEqual((code, output.count("fork: got a process forked after its parent used CUDA")), (0, 3), output)


class Devices(unittest.TestCase):
    def test_the_library_says_what_is_usable(self):
        self.assertEqual(tessera.why_unusable(-1), "")
        count = _native.num_devices()
        for device in tessera.doctor().devices[1:]:
            self.assertEqual(tessera.why_unusable(device.index), device.why_not)
        if count == 0:
            self.assertRegex(tessera.why_unusable(0), r"^device: cuda:0 cannot be used: .+")
        else:
            with self.assertRaisesRegex(ValueError, f"device: got {count}"):
                tessera.why_unusable(count)
        for wrong, error in ((-2, ValueError), ("cuda:0", TypeError), (0.0, TypeError)):
            with self.assertRaises(error):
                tessera.why_unusable(wrong)


class Doctor(unittest.TestCase):
    def test_this_machine_is_well(self):
        report = tessera.doctor()
        self.assertEqual(report.problems, ())
        self.assertEqual(report.version, tessera.__version__)
        self.assertTrue(pathlib.Path(report.library).exists())
        self.assertEqual((report.devices[0].index, report.devices[0].usable), (-1, True))
        self.assertTrue(report.devices[0].name.startswith("CPU"))

    def test_engines_and_whether_they_find_the_plugins(self):
        report = tessera.doctor()
        self.assertEqual([engine.name for engine in report.engines], ["torch", "transformers", "vllm", "sglang"])
        for engine in report.engines:
            self.assertEqual(engine.plugin, not engine.why_not)
            self.assertEqual(engine.version == "", engine.why_not == "not installed")
        self.assertEqual(report.why_no_gpu != "", len(report.devices) == 1)
        self.assertEqual(json.loads(report.json())["engines"][2]["name"], "vllm")
        self.assertEqual(str(report).splitlines()[-1], "healthy")

    def test_engines_are_told_by_what_is_installed(self):
        from tessera import _doctor
        for engine, group, variable, why_not in (
                ("vllm", "vllm.general_plugins", "VLLM_PLUGINS", _doctor._why_not_in_vllm),
                ("sglang", "sglang.srt.plugins", "SGLANG_PLUGINS", _doctor._why_not_in_sglang)):
            entry = importlib.metadata.EntryPoint("tessera", f"tessera_{engine}:register", group)
            installed = {group: [entry]}
            with unittest.mock.patch.object(importlib.metadata, "entry_points", lambda group, known=installed: known.get(group, [])), \
                    unittest.mock.patch.dict(os.environ):
                os.environ.pop(variable, None)
                self.assertEqual(why_not(), "")
                os.environ[variable] = "other"
                self.assertEqual(why_not(), f"{variable}='other' leaves it out")
                installed.clear()
                self.assertIn(f"tessera-{engine} is not installed", why_not())

    def test_as_a_program(self):
        for options, parse in (([], str), (["--json"], json.loads)):
            ran = subprocess.run([sys.executable, "-m", "tessera", "doctor", *options], text=True, capture_output=True)
            self.assertEqual(ran.returncode, 0, ran.stderr)
            self.assertIn("healthy" if not options else "engines", parse(ran.stdout))

    def test_a_wrong_layer_is_found(self):
        code, output = python("""
            import tessera
            from tessera import _doctor
            right = _doctor._DeviceMemory.get
            def off_by_one(self, given, dtype):
                array = right(self, given, dtype)
                array[2, 3] += 1
                return array
            _doctor._DeviceMemory.get = off_by_one
            print(tessera.doctor().problems)
            """)
        self.assertEqual((code, output.strip().splitlines()[-1][:40]), (0, "('the CPU: 1 elements of a small layer a"))


class Errors(unittest.TestCase):
    def test_kinds(self):
        self.assertTrue(issubclass(tessera.TesseraError, RuntimeError))
        self.assertEqual(typing.get_type_hints(tessera.Prediction)["probabilities"], tuple[float, ...])

    def test_a_device_that_is_not_there(self):
        index = _native.num_devices()
        with self.assertRaises((tessera.TesseraError, ValueError)) as raised:
            tessera.Classifier(ROOT / "models" / "movie-reviews", device=f"cuda:{index}")
        self.assertIn("device", str(raised.exception))
        if index == 0:
            self.assertIs(type(raised.exception), tessera.TesseraError)


if __name__ == "__main__":
    unittest.main()
