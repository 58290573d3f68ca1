// A C++17 target beside Tessera, with the GNU extensions that this project asks for.
static_assert(__cplusplus == 201703L, "the project's CMAKE_CXX_STANDARD is 17");
#ifdef __STRICT_ANSI__
#error "the project's CMAKE_CXX_EXTENSIONS is ON"
#endif

int main() {}
