/* The allocator of the C library, of whose calls one fails: loaded first, by LD_PRELOAD (tests/test_stress.py).

   Counted are calls from between two addresses (a library's) of at least `own` bytes, and calls from anywhere of at
   least `other` bytes. */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

static uintptr_t first, last;
static size_t least_own, least_other;
static atomic_long failing, seen; /* which call fails, from 1 on; 0 for none */
static atomic_long failed_size;

void fail(long call, uintptr_t from, uintptr_t to, size_t own, size_t other) {
  first = from;
  last = to;
  least_own = own;
  least_other = other;
  seen = 0;
  failed_size = 0;
  failing = call;
}

/* Ends it. Returns the size of the call that failed, 0 if none did. */
long failed(void) {
  failing = 0;
  return failed_size;
}

static int fails(size_t size, void *caller) {
  if (!failing) return 0;
  uintptr_t at = (uintptr_t)caller;
  if (size < (first <= at && at < last ? least_own : least_other)) return 0;
  if (atomic_fetch_add(&seen, 1) + 1 != failing) return 0;
  failed_size = size;
  errno = ENOMEM;
  return 1;
}

#define FAILS(size) fails(size, __builtin_return_address(0))

void *malloc(size_t size) { return FAILS(size) ? NULL : __libc_malloc(size); }
void *calloc(size_t n, size_t size) { return FAILS(n * size) ? NULL : __libc_calloc(n, size); }
void *realloc(void *old, size_t size) { return FAILS(size) ? NULL : __libc_realloc(old, size); }
void *aligned_alloc(size_t align, size_t size) { return FAILS(size) ? NULL : __libc_memalign(align, size); }
int posix_memalign(void **result, size_t align, size_t size) {
  if (FAILS(size)) return ENOMEM;
  return (*result = __libc_memalign(align, size)) ? 0 : ENOMEM;
}
