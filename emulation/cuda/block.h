/*
 * Private: the threads of one CUDA block, as fibres on the calling thread. Threads wait for each other at barriers of
 * the block, and lanes of a warp at meetings (shuffles, votes, __syncwarp).
 *
 * A thread runs until it waits. Then the first ready thread of its warp goes on, or of the first warp that has one.
 * First means lowest, or highest with the order reversed: a kernel whose bytes depend on the order has a race. Shared
 * memory is filled with 0xff (NaN, -1) before each block, or with 0xa5 in reversed order, so that reading before
 * writing shows too. When no thread is ready and some still wait, the launch fails and reports which threads wait
 * where.
 *
 * It is stricter than a device: a barrier that a thread has missed by leaving the kernel is an error, and so is one
 * that lanes reach as different operations. It does not see races that need another order than that of whole stretches
 * between waits, bank conflicts, or alignment (which the undefined-behavior sanitizer sees).
 *
 * Each shared object has one machine, with a lock around it.
 */
#ifndef ED_BLOCK_H
#define ED_BLOCK_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "fibres.h"

#define ED_WEAK_API extern "C" __attribute__((weak, visibility("default")))

struct ed_index {
    unsigned x, y, z;
};

/* Hidden, so that each shared object has its own: the dynamic linker would merge those of one name. */
#pragma GCC visibility push(hidden)

/* Set for the thread that runs. */
inline ed_index threadIdx, blockIdx, blockDim, gridDim;

/* The section of __shared__ variables, by the linker's names. AddressSanitizer guards each
 * variable by itself instead. */
extern "C" {
extern char __start_ed_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_ed_shared[] __attribute__((weak, visibility("hidden")));
}

namespace ed_emulated {

constexpr unsigned most_threads = 1024;
constexpr size_t most_shared = 163 << 10; /* bytes a block may ask for on the smallest chip we compile for, sm_87 */
enum error : int { no_error = 0, invalid_value = 1, out_of_memory = 2, launch_failed = 719 }; /* numbers as in CUDA */

/* The lanes of one warp that wait for each other in one operation. */
struct meeting {
    uint32_t mask, missing, unread; /* sets of lanes; the meeting is free if the last two are 0 */
    const char *what;
    uint64_t given[32];
};

struct warp {
    uint32_t lanes, ready;
    int meetings_used;
    meeting meetings[32]; /* a lane is in one meeting at a time, and no meeting is without a lane */
};

struct thread {
    fibre self;
    ed_index index;
    unsigned number;
    const char *waits; /* where it waits, or null */
    bool over;
};

struct machine {
    fibre caller;
    thread *now;
    thread threads[most_threads];
    warp warps[most_threads / 32];
    uint32_t ready_warps;
    unsigned count, at_barrier, finished;
    int votes, result;    /* votes so far of a barrier that counts, and result of the last one */
    void (*body)(void *); /* runs the kernel with its arguments */
    void *arguments;
    char *stacks, *shared;
    bool entering, reversed, order_known;
    char failure[256];
};

inline machine all;
inline pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Runs when the shared object is unloaded. */
__attribute__((destructor)) inline void give_back() {
    if (all.stacks) unmap_stacks(all.stacks, most_threads);
    all.stacks = nullptr;
}

/* ---------------------------------------------------------------- scheduling */

inline int first_of(uint32_t set) { return all.reversed ? 31 - __builtin_clz(set) : __builtin_ctz(set); }

inline void set_ready(warp &w, uint32_t lanes) {
    const auto bit = 1u << (&w - all.warps);
    w.ready = lanes;
    all.ready_warps = lanes ? all.ready_warps | bit : all.ready_warps & ~bit;
}

/* Goes on in the first ready thread, of warp `preferred` if it has one. If no thread is
 * ready, goes on in the caller of the launch. */
inline void run_next(warp *preferred, bool over = false) {
    thread &from = *all.now;
    fibre *to = &all.caller;
    if (all.ready_warps && !all.failure[0]) {
        const warp &w = preferred && preferred->ready ? *preferred : all.warps[first_of(all.ready_warps)];
        thread &next = all.threads[(&w - all.warps) * 32 + first_of(w.ready)];
        all.now = &next;
        threadIdx = next.index;
        if (&next == &from) return;
        to = &next.self;
    }
    switch_fibre(from.self, *to, over);
}

inline void wait_here(const char *what) {
    thread &self = *all.now;
    warp &w = all.warps[self.number / 32];
    self.waits = what;
    set_ready(w, w.ready & ~(1u << self.number % 32));
    run_next(&w);
}

[[noreturn]] inline void end_thread() {
    thread &self = *all.now;
    warp &w = all.warps[self.number / 32];
    self.over = true;
    all.finished++;
    set_ready(w, w.ready & ~(1u << self.number % 32));
    run_next(&w, true);
    __builtin_unreachable();
}

inline void run_thread() {
    enter_fibre(all.entering ? &all.caller : nullptr);
    all.entering = false;
    all.body(all.arguments);
    end_thread();
}

/* Ends the launch with a message, formatted as printf does. */
template <class... A> [[noreturn]] void fail(const char *text, A... values) {
    snprintf(all.failure, sizeof all.failure, text, values...);
    run_next(nullptr);
    __builtin_unreachable();
}

/* ---------------------------------------------------------------- barriers and meetings */

/* Waits for all threads of the block, and returns the sum of their votes. */
inline int barrier(int vote = 0, const char *what = "__syncthreads") {
    all.votes += vote;
    if (++all.at_barrier < all.count) {
        wait_here(what);
    } else {
        all.result = all.votes;
        all.votes = 0;
        all.at_barrier = 0;
        for (unsigned i = 0; i * 32 < all.count; i++) set_ready(all.warps[i], all.warps[i].lanes);
        run_next(nullptr);
    }
    all.now->waits = nullptr;
    return all.result;
}

/* Returns the meeting of `mask` that this lane is expected at, or a new one. */
inline meeting &meeting_of(warp &w, uint32_t mask, uint32_t bit, const char *what) {
    meeting *open = nullptr;
    for (int i = 0; i < w.meetings_used; i++) {
        meeting &m = w.meetings[i];
        if (m.mask == mask && m.missing & bit) {
            if (m.what != what && strcmp(m.what, what))
                fail("lanes of one warp meet in %s and in %s (thread %u)", m.what, what, all.now->number);
            return m;
        }
        if (!m.missing && !m.unread && !open) open = &m;
    }
    if (!open) open = &w.meetings[w.meetings_used++];
    open->mask = open->missing = open->unread = mask;
    open->what = what;
    return *open;
}

/* Waits for the lanes of `mask`, each of which gives a value; `read` gets all values, by lane. */
template <class F> auto meet(const char *what, uint32_t mask, uint64_t value, F read) {
    thread &self = *all.now;
    warp &w = all.warps[self.number / 32];
    const unsigned lane = self.number % 32, bit = 1u << lane;
    mask &= w.lanes; /* the last warp of a block may be short */
    if (!(mask & bit)) fail("%s with a mask that lacks its own lane (thread %u)", what, self.number);
    meeting &m = meeting_of(w, mask, bit, what);
    m.given[lane] = value;
    m.missing &= ~bit;
    if (m.missing) {
        wait_here(what);
    } else {
        set_ready(w, w.ready | mask);
        run_next(&w);
    }
    self.waits = nullptr;
    m.unread &= ~bit;
    return read(static_cast<const uint64_t *>(m.given), lane, mask);
}

/* ---------------------------------------------------------------- a launch */

/* Describes why no thread is ready though not all are finished. */
inline void report_deadlock() {
    const thread *waiting = nullptr, *missing = nullptr;
    unsigned count = 0;
    for (unsigned i = 0; i < all.count; i++)
        if (!waiting && all.threads[i].waits && !all.threads[i].over) waiting = &all.threads[i];
    for (unsigned i = 0; i < all.count; i++) {
        const thread &t = all.threads[i];
        const bool here = !t.over && !strcmp(t.waits, waiting->waits);
        count += here;
        if (!here && !missing) missing = &t;
    }
    if (missing)
        snprintf(all.failure, sizeof all.failure,
                 "%u of %u threads wait in %s (thread %u), others do not (thread %u %s)", count, all.count,
                 waiting->waits, waiting->number, missing->number,
                 missing->over ? "has left the kernel" : missing->waits);
    else
        snprintf(all.failure, sizeof all.failure, "all %u threads wait in %s for lanes that wait with another mask",
                 all.count, waiting->waits);
}

inline void start_threads() {
    for (unsigned i = 0; i < all.count; i++) {
        thread &t = all.threads[i];
        make_fibre(t.self, all.stacks, i, run_thread);
        t.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        t.number = i;
        t.waits = nullptr;
        t.over = false;
    }
    all.ready_warps = 0;
    for (unsigned i = 0; i * 32 < all.count; i++) {
        warp &w = all.warps[i];
        const unsigned lanes = all.count - i * 32;
        w.lanes = lanes < 32 ? (1u << lanes) - 1 : 0xffffffffu;
        w.meetings_used = 0;
        set_ready(w, w.lanes);
    }
}

inline void run_block(size_t shared_bytes) {
    const int poison = all.reversed ? 0xa5 : 0xff;
    if (shared_bytes) memset(all.shared, poison, shared_bytes);
    if (__start_ed_shared) memset(__start_ed_shared, poison, static_cast<size_t>(__stop_ed_shared - __start_ed_shared));
    all.at_barrier = all.finished = 0;
    all.votes = 0;
    start_threads();
    const int w = first_of(all.ready_warps);
    thread &first = all.threads[w * 32 + first_of(all.warps[w].ready)];
    all.entering = true;
    all.now = &first;
    threadIdx = first.index;
    switch_fibre(all.caller, first.self);
    if (all.finished < all.count && !all.failure[0]) report_deadlock();
    for (unsigned i = 0; i < all.count && !all.failure[0]; i++)
        if (overflowed(all.stacks, i))
            snprintf(all.failure, sizeof all.failure, "the stack of thread %u overflowed, of %zu bytes", i,
                     stack_bytes);
}

/* Runs every block in turn. The lock must be held. */
inline int run_grid(size_t shared_bytes) {
    if (!all.stacks && !(all.stacks = map_stacks(most_threads))) return out_of_memory;
    const size_t aligned = (shared_bytes + 15) / 16 * 16;
    if (shared_bytes && !(all.shared = static_cast<char *>(aligned_alloc(16, aligned)))) return out_of_memory;
#ifdef ED_FIBRES_ASAN
    if (shared_bytes) __asan_poison_memory_region(all.shared + shared_bytes, aligned - shared_bytes);
#endif
    const uint64_t blocks = static_cast<uint64_t>(gridDim.x) * gridDim.y * gridDim.z;
    all.failure[0] = 0;
    for (uint64_t i = 0; i < blocks && !all.failure[0]; i++) {
        blockIdx = {static_cast<unsigned>(i % gridDim.x), static_cast<unsigned>(i / gridDim.x % gridDim.y),
                    static_cast<unsigned>(i / gridDim.x / gridDim.y)};
        run_block(shared_bytes);
    }
    if (shared_bytes) free(all.shared);
    all.shared = nullptr;
    if (!all.failure[0]) return no_error;
    fprintf(stderr, "emulated CUDA: block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z, all.failure);
    return launch_failed;
}

/* Runs `body` in every thread of every block. Returns 0 or an error number of CUDA. */
inline int launch(ed_index grid, ed_index block, size_t shared_bytes, void (*body)(void *), void *arguments) {
    const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
    const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
    if (!threads || threads > most_threads || !blocks || shared_bytes > most_shared) return invalid_value;
    pthread_mutex_lock(&lock);
    if (!all.order_known) {
        const char *order = getenv("ED_EMULATED_ORDER");
        all.reversed = order && !strcmp(order, "reversed");
        all.order_known = true;
    }
    gridDim = grid;
    blockDim = block;
    all.count = static_cast<unsigned>(threads);
    all.body = body;
    all.arguments = arguments;
    const int error = run_grid(shared_bytes);
    pthread_mutex_unlock(&lock);
    return error;
}

} // namespace ed_emulated

#pragma GCC visibility pop

/* ---------------------------------------------------------------- interface for programs that load kernels */

/* Makes threads run from the last to the first from now on, or again from the first to the last. */
ED_WEAK_API void ed_emulated_reverse(int reversed) {
    ed_emulated::all.reversed = reversed;
    ed_emulated::all.order_known = true;
}

/* Returns why the last launch failed, or "" if it did not. */
ED_WEAK_API const char *ed_emulated_failure(void) { return ed_emulated::all.failure; }

#endif
