// Two XLA custom calls for CPUs, in XLA's own threads:
//   int8_matmul  y [R O] = x [R I] w^T * scale, with w [O I] in int8 and all else in float32. Each weight is read once for all rows.
//   attention    one query of each head over the columns that its row sees: softmax(q k^T / sqrt(D)) v in float32.
//
// What a row gives does not depend on the other rows, nor on the number of threads.
// Instruction sets: vectors.inc, attention.inc and int8_float.inc are compiled once for each (float32 multiply-add), int8_vnni.inc needs
// AVX-512 VNNI. XLA's C interface and nothing of the C++ library: the file that comes out needs libc only.

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <sched.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "xla/ffi/api/c_api.h"

#define VISIBLE extern "C" __attribute__((visibility("default")))

namespace {

struct Product {
  const float* x;       // [rows inputs]
  const int8_t* w;      // [outputs inputs]
  const float* scale;   // [outputs]
  float* y;             // [rows outputs]
  uint8_t* scratch;     // [rows stride]
  int64_t rows, inputs, outputs, stride;
};

constexpr int64_t kHeads = 64;  // most heads of a group

struct Attention {
  const float *q, *k, *v;  // [rows groups heads size], [rows groups columns size] twice
  const uint8_t* mask;     // [rows columns], 1: seen
  float* y;                // [rows groups heads size]
  int64_t rows, groups, heads, columns, size;
};

struct InstructionSet {
  const char* name;
  bool (*here)();                                                // whether this processor has it
  void (*prepare)(const Product&, int64_t row);                  // a row of x into the scratch space; null: nothing to do
  void (*multiply)(const Product&, int64_t begin, int64_t end);  // outputs begin to end of all rows
  void (*attend)(const Attention&, int64_t index);               // one group of one row
};

constexpr int64_t kRowBlock = 16;  // rows whose x stays in the second-level cache beside the weights

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// In a register: compilers else read a vector from memory again for each product with it.
#if defined(__x86_64__)
#define KEEP(vector) asm("" : "+x"(vector))
#elif defined(__aarch64__)
#define KEEP(vector) asm("" : "+w"(vector))
#else
#define KEEP(vector)
#endif

typedef float Four __attribute__((vector_size(16)));
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t FourPlaces __attribute__((vector_size(16)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, FourPlaces{__VA_ARGS__})
#endif

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define NAMESPACE avx2
#define LANES 8
#define WIDEN(from) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))))
#include "vectors.inc"
#include "attention.inc"
#include "int8_float.inc"
#undef NAMESPACE
#undef LANES
#undef WIDEN
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")
#endif
#define NAMESPACE vnni
#define LANES 16
#include "vectors.inc"
#include "attention.inc"
#include "int8_vnni.inc"
#undef NAMESPACE
#undef LANES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#if defined(__aarch64__)
inline float32x4_t widen(const int8_t* from) {
  uint32_t four;
  std::memcpy(&four, from, sizeof four);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four))))));
}
#define WIDEN(from) widen(from)
#else
#define WIDEN(from) Vector{float((from)[0]), float((from)[1]), float((from)[2]), float((from)[3])}
#endif
#define NAMESPACE baseline
#define LANES 4
#include "vectors.inc"
#include "attention.inc"
#include "int8_float.inc"

#if defined(__x86_64__)
bool has_vnni() {
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
bool always() { return true; }

const InstructionSet kSets[] = {  // best first
#if defined(__x86_64__)
    {"AVX-512 VNNI", has_vnni, vnni::prepare, vnni::multiply, vnni::attend},
    {"AVX2", has_avx2, nullptr, avx2::multiply, avx2::attend},
#endif
#if defined(__aarch64__)
    {"NEON", always, nullptr, baseline::multiply, baseline::attend},
#else
    {"plain C++", always, nullptr, baseline::multiply, baseline::attend},
#endif
};

std::atomic<const InstructionSet*> chosen{nullptr};

}  // namespace

#include "together.inc"

namespace {

struct ProductCall {
  const InstructionSet& set;
  const Product& product;
  int64_t chunk;  // outputs
};

void prepare_row(const void* data, int64_t row) {
  const ProductCall& call = *static_cast<const ProductCall*>(data);
  call.set.prepare(call.product, row);
}

void multiply_chunk(const void* data, int64_t index) {
  const ProductCall& call = *static_cast<const ProductCall*>(data);
  call.set.multiply(call.product, index * call.chunk, smaller((index + 1) * call.chunk, call.product.outputs));
}

void multiply_together(const InstructionSet& set, const Product& product, const XLA_FFI_CallFrame* frame) {
  // A chunk is about 10 microseconds of work: 128 kB of weights for one row, less for more rows, and a multiple of every tile.
  const int64_t rows = smaller(product.rows, kRowBlock);
  const int64_t chunk = (128 << 10) / (product.inputs * (1 + rows / 4) + 1) / 8 * 8 + 8;
  const int64_t chunks = (product.outputs + chunk - 1) / chunk;
  const ProductCall call = {set, product, chunk};
  const Work work = {&call, set.prepare == nullptr ? nullptr : prepare_row, multiply_chunk, product.rows, chunks};
  work_together(work, chunks / 2, frame);
}

constexpr int64_t kWorth = 128 << 10;  // bytes of keys and values for which another thread helps

struct AttentionCall {
  const InstructionSet& set;
  const Attention& attention;
};

void attend_group(const void* data, int64_t index) {
  const AttentionCall& call = *static_cast<const AttentionCall*>(data);
  call.set.attend(call.attention, index);
}

void attend_together(const InstructionSet& set, const Attention& attention, const XLA_FFI_CallFrame* frame) {
  int64_t seen = 0;
  for (int64_t index = 0; index < attention.rows * attention.columns; index++) seen += attention.mask[index];
  const int64_t bytes = seen * attention.groups * attention.size * 2 * sizeof(float), chunks = attention.rows * attention.groups;
  const AttentionCall call = {set, attention};
  const Work work = {&call, nullptr, attend_group, 0, chunks};
  work_together(work, smaller(chunks, bytes / kWorth), frame);
}

XLA_FFI_Error* refuse(const XLA_FFI_Api* api, const char* why) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, why, XLA_FFI_Error_Code_INVALID_ARGUMENT};
  return api->XLA_FFI_Error_Create(&args);
}

bool is(const void* buffer, XLA_FFI_DataType dtype, int64_t rank) {
  const XLA_FFI_Buffer* it = static_cast<const XLA_FFI_Buffer*>(buffer);
  return it->dtype == dtype && it->rank == rank;
}

bool has_shape(const XLA_FFI_Buffer* buffer, int64_t rows, int64_t groups, int64_t third, int64_t size) {
  const int64_t* dims = buffer->dims;
  return dims[0] == rows && dims[1] == groups && dims[2] == third && dims[3] == size;
}

// Whether XLA only asks what this is, before the first call; then it is told.
bool tells_what_it_is(XLA_FFI_CallFrame* frame) {
  if (frame->extension_start == nullptr || frame->extension_start->type != XLA_FFI_Extension_Metadata) return false;
  XLA_FFI_Metadata* metadata = reinterpret_cast<XLA_FFI_Metadata_Extension*>(frame->extension_start)->metadata;
  metadata->api_version = XLA_FFI_Api_Version{XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
  metadata->traits = 0;
  metadata->state_type_id = XLA_FFI_UNKNOWN_TYPE_ID;
  return true;
}

XLA_FFI_Buffer* buffer(void* it) { return static_cast<XLA_FFI_Buffer*>(it); }

}  // namespace

// x [R I] float32, w [O I] int8, scale [O] float32 -> y [R O] float32, scratch space [R S] uint8.
VISIBLE XLA_FFI_Error* qwen3_int8_matmul(XLA_FFI_CallFrame* frame) {
  if (tells_what_it_is(frame)) return nullptr;
  if (frame->stage != XLA_FFI_ExecutionStage_EXECUTE || frame->args.size != 3 || frame->rets.size != 2)
    return refuse(frame->api, "int8 matmul: 3 arguments and 2 results are expected");
  void **args = frame->args.args, **rets = frame->rets.rets;
  if (!is(args[0], XLA_FFI_DataType_F32, 2) || !is(args[1], XLA_FFI_DataType_S8, 2) || !is(args[2], XLA_FFI_DataType_F32, 1) ||
      !is(rets[0], XLA_FFI_DataType_F32, 2) || !is(rets[1], XLA_FFI_DataType_U8, 2))
    return refuse(frame->api, "int8 matmul: x [R I] float32, w [O I] int8, scale [O] float32 are expected");
  XLA_FFI_Buffer *x = buffer(args[0]), *w = buffer(args[1]), *scale = buffer(args[2]), *y = buffer(rets[0]), *scratch = buffer(rets[1]);
  Product product = {static_cast<float*>(x->data), static_cast<int8_t*>(w->data), static_cast<float*>(scale->data),
                     static_cast<float*>(y->data), static_cast<uint8_t*>(scratch->data),
                     x->dims[0], x->dims[1], w->dims[0], scratch->dims[1]};
  if (w->dims[1] != product.inputs || scale->dims[0] != product.outputs || y->dims[0] != product.rows || y->dims[1] != product.outputs ||
      scratch->dims[0] != product.rows || product.stride < 256 + (product.inputs + 63) / 64 * 192)
    return refuse(frame->api, "int8 matmul: the shapes do not fit");
  multiply_together(*chosen.load(std::memory_order_acquire), product, frame);
  return nullptr;
}

// q [B J G D], k and v [B J S D] float32, mask [B S] -> [B J G D] float32. D is a multiple of 16, G at most kHeads.
VISIBLE XLA_FFI_Error* qwen3_attention(XLA_FFI_CallFrame* frame) {
  if (tells_what_it_is(frame)) return nullptr;
  if (frame->stage != XLA_FFI_ExecutionStage_EXECUTE || frame->args.size != 4 || frame->rets.size != 1)
    return refuse(frame->api, "attention: 4 arguments and a result are expected");
  void **args = frame->args.args, **rets = frame->rets.rets;
  if (!is(args[0], XLA_FFI_DataType_F32, 4) || !is(args[1], XLA_FFI_DataType_F32, 4) || !is(args[2], XLA_FFI_DataType_F32, 4) ||
      !is(args[3], XLA_FFI_DataType_PRED, 2) || !is(rets[0], XLA_FFI_DataType_F32, 4))
    return refuse(frame->api, "attention: q [B J G D], k and v [B J S D] float32, mask [B S] are expected");
  XLA_FFI_Buffer *q = buffer(args[0]), *k = buffer(args[1]), *v = buffer(args[2]), *mask = buffer(args[3]), *y = buffer(rets[0]);
  Attention attention = {static_cast<float*>(q->data), static_cast<float*>(k->data), static_cast<float*>(v->data),
                         static_cast<uint8_t*>(mask->data), static_cast<float*>(y->data),
                         q->dims[0], q->dims[1], q->dims[2], k->dims[2], q->dims[3]};
  const int64_t rows = attention.rows, groups = attention.groups, columns = attention.columns, size = attention.size;
  if (!has_shape(k, rows, groups, columns, size) || !has_shape(v, rows, groups, columns, size) ||
      !has_shape(y, rows, groups, attention.heads, size) || mask->dims[0] != rows || mask->dims[1] != columns || size % 16 != 0 ||
      attention.heads > kHeads)
    return refuse(frame->api, "attention: the shapes do not fit");
  attend_together(*chosen.load(std::memory_order_acquire), attention, frame);
  return nullptr;
}

// Choose an instruction set by its name, or (null) the best one. Returns the name in use; null: this processor lacks it.
VISIBLE const char* qwen3_choose(const char* name) {
  for (const InstructionSet& set : kSets)
    if ((name == nullptr || std::strcmp(name, set.name) == 0) && set.here()) {
      chosen.store(&set, std::memory_order_release);
      return set.name;
    }
  return nullptr;
}
