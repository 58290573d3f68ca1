// The accumulators of a WGMMA in assembly: TESSERA_REGISTERS_n are their numbers, %0 on, and TESSERA_D_n the operands,
// d[0] to d[n - 1], that they stand for. n is a number of accumulators of wgmma_shapes.def.
#pragma once

#define TESSERA_REGISTERS_4 "%0, %1, %2, %3"
#define TESSERA_REGISTERS_8 TESSERA_REGISTERS_4 ", %4, %5, %6, %7"
#define TESSERA_REGISTERS_12 TESSERA_REGISTERS_8 ", %8, %9, %10, %11"
#define TESSERA_REGISTERS_16 TESSERA_REGISTERS_12 ", %12, %13, %14, %15"
#define TESSERA_REGISTERS_24 TESSERA_REGISTERS_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define TESSERA_REGISTERS_32 TESSERA_REGISTERS_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define TESSERA_REGISTERS_64                                                         \
  TESSERA_REGISTERS_32                                                               \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TESSERA_REGISTERS_112                                                        \
  TESSERA_REGISTERS_64                                                               \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define TESSERA_REGISTERS_120 TESSERA_REGISTERS_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define TESSERA_REGISTERS_128 TESSERA_REGISTERS_120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define TESSERA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define TESSERA_D8(i) TESSERA_D4(i), TESSERA_D4(i + 4)
#define TESSERA_D32(i) TESSERA_D8(i), TESSERA_D8(i + 8), TESSERA_D8(i + 16), TESSERA_D8(i + 24)
#define TESSERA_D_4 TESSERA_D4(0)
#define TESSERA_D_8 TESSERA_D8(0)
#define TESSERA_D_12 TESSERA_D_8, TESSERA_D4(8)
#define TESSERA_D_16 TESSERA_D_8, TESSERA_D8(8)
#define TESSERA_D_24 TESSERA_D_16, TESSERA_D8(16)
#define TESSERA_D_32 TESSERA_D32(0)
#define TESSERA_D_64 TESSERA_D_32, TESSERA_D32(32)
#define TESSERA_D_112 TESSERA_D_64, TESSERA_D32(64), TESSERA_D8(96), TESSERA_D8(104)
#define TESSERA_D_120 TESSERA_D_112, TESSERA_D8(112)
#define TESSERA_D_128 TESSERA_D_120, TESSERA_D8(120)
