#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "vector.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

parallel_call vitrail_parallel = 0;

void vitrail_set_parallel(void *call) { vitrail_parallel = (parallel_call)call; }
int vitrail_lanes(void) { return LANES; }

/* Ask for large pages where a fresh block of memory has room for them: fewer faults, fewer misses. */
void vitrail_large_pages(void *memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = (uintptr_t)2 << 20, from = ((uintptr_t)memory + page - 1) / page * page;
    const uintptr_t to = ((uintptr_t)memory + bytes) / page * page;
    if (to > from) madvise((void *)from, to - from, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)bytes;
#endif
}

/* Whole pages of a block that nobody will read again go back to the system; written to, they come anew. */
void vitrail_forget(void *memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_DONTNEED)
    const uintptr_t page = (uintptr_t)4 << 10, from = ((uintptr_t)memory + page - 1) / page * page;
    const uintptr_t to = ((uintptr_t)memory + bytes) / page * page;
    if (to > from) madvise((void *)from, to - from, MADV_DONTNEED);
#else
    (void)memory;
    (void)bytes;
#endif
}

typedef struct {
    Work *work;
    long threads_seen;
} Team;

static void team_member(void *pointer) {
    Team *team = pointer;
    Work *work = team->work;
    const int thread = (int)__atomic_fetch_add(&team->threads_seen, 1, __ATOMIC_RELAXED);
    for (;;) {
        const long item = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        if (item >= work->items) return;
        work->body(work->context, item, thread);
    }
}

void vitrail_share(void (*body)(void *, long, int), void *context, long items, int threads) {
    if (threads > items) threads = (int)items;
    Work work = {body, context, items, 0, threads};
    Team team = {&work, 0};
    if (threads <= 1 || !vitrail_parallel) team_member(&team);
    else vitrail_parallel(team_member, &team, (unsigned)threads, 0);
}

void vitrail_panel(long rows, long depth, const float *a, long a_block, const float *b, float *c, long ldc,
                   int add) {
    long tiles = (rows + ROWS - 1) / ROWS;
    while (tiles > 0) {
        const long m = (rows + tiles - 1) / tiles;
        switch (m) {
#define HEIGHT(n) \
    case n: tile_product(n, depth, a, a_block, b, c, ldc, add); break;
            HEIGHT(1) HEIGHT(2) HEIGHT(3) HEIGHT(4) HEIGHT(5) HEIGHT(6)
#if ROWS > 6
            HEIGHT(7) HEIGHT(8) HEIGHT(9) HEIGHT(10) HEIGHT(11) HEIGHT(12)
#endif
#if ROWS > 12
            HEIGHT(13) HEIGHT(14)
#endif
#undef HEIGHT
        }
        a += m * DEPTH;
        c += m * ldc;
        rows -= m;
        tiles--;
    }
}
