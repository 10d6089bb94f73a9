/* Counts the system calls that change files, and at a chosen one kills the process or fails.
 *
 * Preloaded into the process under test: cc -shared -fPIC -o faults.so faults.c -ldl
 * arm(0, 0) counts; arm(k, 0) kills the process just before call k; arm(k, errno) makes call k fail;
 * disarm() stops and gives the number of calls counted.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int armed, chosen, code, count;

void arm(int k, int error) { armed = 1; chosen = k; code = error; count = 0; }
int disarm(void) { armed = 0; return count; }

/* Whether this call is the one that fails; a kill does not return. */
static int hit(void) {
    if (!armed || ++count != chosen) return 0;
    if (!code) kill(getpid(), SIGKILL);
    errno = code;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) { return hit() ? -1 : REAL(write)(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return hit() ? -1 : REAL(pwrite)(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int n) { return hit() ? -1 : REAL(writev)(fd, parts, n); }
int fsync(int fd) { return hit() ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return hit() ? -1 : REAL(fdatasync)(fd); }
int rename(const char *from, const char *to) { return hit() ? -1 : REAL(rename)(from, to); }
int link(const char *from, const char *to) { return hit() ? -1 : REAL(link)(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return hit() ? -1 : REAL(linkat)(a, from, b, to, flags); }
int unlink(const char *path) { return hit() ? -1 : REAL(unlink)(path); }
int ftruncate(int fd, off_t size) { return hit() ? -1 : REAL(ftruncate)(fd, size); }
/* A failing close has closed all the same. */
int close(int fd) { int fails = hit(), error = errno, answer = REAL(close)(fd); errno = fails ? error : errno; return fails ? -1 : answer; }

static int opened(const char *name, const char *path, int flags, mode_t mode) {
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && hit()) return -1;
    int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, name);
    return real(path, flags, mode);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list more; va_start(more, flags); \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return opened(#name, path, flags, mode); \
    }

OPEN(open)
OPEN(open64)
