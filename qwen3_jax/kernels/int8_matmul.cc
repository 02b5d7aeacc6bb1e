// y [R O] = x [R I] w^T * scale, with w [O I] in int8 and all else in float32: an XLA custom call for CPUs, in XLA's own threads.
//
// Each weight is read once for all rows. What a row gives does not depend on the other rows, nor on the number of threads.
// Instruction sets: int8_float.inc is compiled once for each (float32 multiply-add), int8_vnni.inc needs AVX-512 VNNI.
// XLA's C interface and nothing of the C++ library: the file that comes out needs libc only.

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

struct InstructionSet {
  const char* name;
  bool (*here)();                                           // whether this processor has it
  void (*prepare)(const Product&, int64_t row);             // a row of x into the scratch space; null: nothing to do
  void (*multiply)(const Product&, int64_t begin, int64_t end);  // outputs begin to end of all rows
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
#include "int8_float.inc"
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
#include "int8_vnni.inc"
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
    {"AVX-512 VNNI", has_vnni, vnni::prepare, vnni::multiply},
    {"AVX2", has_avx2, nullptr, avx2::multiply},
#endif
#if defined(__aarch64__)
    {"NEON", always, nullptr, baseline::multiply},
#else
    {"plain C++", always, nullptr, baseline::multiply},
#endif
};

std::atomic<const InstructionSet*> chosen{nullptr};

// One call of the custom call, shared by the threads that help. A place is free when nobody uses it: a helper that comes late finds
// nothing to do, and lets go.
struct alignas(64) Job {
  std::atomic<int64_t> users{0};
  Product product;
  const InstructionSet* set;
  int64_t chunk, chunks;
  alignas(64) std::atomic<int64_t> next_row, rows_ready;
  alignas(64) std::atomic<int64_t> next_chunk, chunks_done;
};

Job jobs[64];  // calls at one time beyond these are computed by one thread each

inline void pause_briefly(int& turns) {
  if (++turns > 1000) {
    sched_yield();
    return;
  }
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Take rows, then chunks of outputs, until none is left. Waits only for rows that another thread has taken and is at work on.
void help(Job& job) {
  int64_t rows = job.product.rows, row, chunk;
  if (job.set->prepare != nullptr) {
    while ((row = job.next_row.fetch_add(1, std::memory_order_relaxed)) < rows) {
      job.set->prepare(job.product, row);
      job.rows_ready.fetch_add(1, std::memory_order_release);
    }
    for (int turns = 0; job.rows_ready.load(std::memory_order_acquire) < rows;) pause_briefly(turns);
  }
  while ((chunk = job.next_chunk.fetch_add(1, std::memory_order_relaxed)) < job.chunks) {
    job.set->multiply(job.product, chunk * job.chunk, smaller((chunk + 1) * job.chunk, job.product.outputs));
    job.chunks_done.fetch_add(1, std::memory_order_release);
  }
}

void help_and_leave(void* data) {
  Job& job = *static_cast<Job*>(data);
  if (job.next_chunk.load(std::memory_order_relaxed) < job.chunks) help(job);
  job.users.fetch_sub(1, std::memory_order_release);
}

Job* claim(int64_t users) {
  for (Job& job : jobs) {
    int64_t nobody = 0;
    if (job.users.compare_exchange_strong(nobody, users, std::memory_order_acquire)) return &job;
  }
  return nullptr;
}

void multiply_alone(const InstructionSet& set, const Product& product) {
  if (set.prepare != nullptr)
    for (int64_t row = 0; row < product.rows; row++) set.prepare(product, row);
  set.multiply(product, 0, product.outputs);
}

int64_t threads_of(const XLA_FFI_CallFrame* frame) {
  int64_t threads = 0;
  XLA_FFI_ThreadPool_NumThreads_Args args = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, nullptr, frame->ctx, &threads};
  if (XLA_FFI_Error* error = frame->api->XLA_FFI_ThreadPool_NumThreads(&args)) {  // it has no pool
    XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, nullptr, error};
    frame->api->XLA_FFI_Error_Destroy(&destroy);
    return 1;
  }
  return threads;
}

void multiply_together(const InstructionSet& set, const Product& product, const XLA_FFI_CallFrame* frame) {
  // A chunk is about 10 microseconds of work: 128 kB of weights for one row, less for more rows, and a multiple of every tile.
  int64_t rows = smaller(product.rows, kRowBlock);
  int64_t chunk = (128 << 10) / (product.inputs * (1 + rows / 4) + 1) / 8 * 8 + 8;
  int64_t chunks = (product.outputs + chunk - 1) / chunk;
  int64_t helpers = chunks < 4 ? 0 : smaller(threads_of(frame), chunks / 2) - 1;
  Job* job = helpers > 0 ? claim(1 + helpers) : nullptr;
  if (job == nullptr) return multiply_alone(set, product);
  job->product = product;
  job->set = &set;
  job->chunk = chunk;
  job->chunks = chunks;
  job->next_row = job->rows_ready = job->next_chunk = job->chunks_done = 0;
  for (int64_t index = 0; index < helpers; index++) {
    XLA_FFI_ThreadPool_Schedule_Args args = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, nullptr, frame->ctx, help_and_leave, job};
    if (XLA_FFI_Error* error = frame->api->XLA_FFI_ThreadPool_Schedule(&args)) {
      XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, nullptr, error};
      frame->api->XLA_FFI_Error_Destroy(&destroy);
      job->users.fetch_sub(1, std::memory_order_relaxed);
    }
  }
  help(*job);
  for (int turns = 0; job->chunks_done.load(std::memory_order_acquire) < chunks;) pause_briefly(turns);
  job->users.fetch_sub(1, std::memory_order_release);
}

XLA_FFI_Error* refuse(const XLA_FFI_Api* api, const char* why) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, why, XLA_FFI_Error_Code_INVALID_ARGUMENT};
  return api->XLA_FFI_Error_Create(&args);
}

bool is(const void* buffer, XLA_FFI_DataType dtype, int64_t rank) {
  const XLA_FFI_Buffer* it = static_cast<const XLA_FFI_Buffer*>(buffer);
  return it->dtype == dtype && it->rank == rank;
}

}  // namespace

// x [R I] float32, w [O I] int8, scale [O] float32 -> y [R O] float32, scratch space [R S] uint8.
VISIBLE XLA_FFI_Error* qwen3_int8_matmul(XLA_FFI_CallFrame* frame) {
  if (frame->extension_start != nullptr && frame->extension_start->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata* metadata = reinterpret_cast<XLA_FFI_Metadata_Extension*>(frame->extension_start)->metadata;
    metadata->api_version = XLA_FFI_Api_Version{XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
    metadata->traits = 0;
    metadata->state_type_id = XLA_FFI_UNKNOWN_TYPE_ID;
    return nullptr;
  }
  if (frame->stage != XLA_FFI_ExecutionStage_EXECUTE || frame->args.size != 3 || frame->rets.size != 2)
    return refuse(frame->api, "int8 matmul: 3 arguments and 2 results are expected");
  void **args = frame->args.args, **rets = frame->rets.rets;
  if (!is(args[0], XLA_FFI_DataType_F32, 2) || !is(args[1], XLA_FFI_DataType_S8, 2) || !is(args[2], XLA_FFI_DataType_F32, 1) ||
      !is(rets[0], XLA_FFI_DataType_F32, 2) || !is(rets[1], XLA_FFI_DataType_U8, 2))
    return refuse(frame->api, "int8 matmul: x [R I] float32, w [O I] int8, scale [O] float32 are expected");
  auto buffer = [](void* it) { return static_cast<XLA_FFI_Buffer*>(it); };
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

// Choose an instruction set by its name, or (null) the best one. Returns the name in use; null: this processor lacks it.
VISIBLE const char* qwen3_int8_choose(const char* name) {
  for (const InstructionSet& set : kSets)
    if ((name == nullptr || std::strcmp(name, set.name) == 0) && set.here()) {
      chosen.store(&set, std::memory_order_release);
      return set.name;
    }
  return nullptr;
}
