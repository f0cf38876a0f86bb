/*
 * Stands between a program and the C library, and lets chosen system calls of one thread fail.
 *
 * It is preloaded (LD_PRELOAD); the program steers it by the faults_ functions below. A fault is told, not made:
 * the call that fails never reaches the kernel, so whatever goes wrong after it is the program's own doing. Only
 * close() is made all the same, because Linux closes the descriptor whatever it then says.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, ONE, REST, EACH };
enum { AT_ONCE, WAITS, MOVES_BYTES };

#define MOST 10000

static __thread int armed;
static int how, at, number, short_counts, times;
static int calls, injected, last_failed, unowned_closes;
/* How often in a row calls of each kind have failed. */
static int streaks[3];
static const char *names[MOST];

/*
 * A new plan. ONE: the call number `at_call` fails with `error`. REST: so do all later ones of the same name.
 * EACH: each call that may wait fails `in_a_row` times before it is made. And with `one_byte` no call moves more.
 */
void faults_plan(int plan, int at_call, int error, int in_a_row, int one_byte)
{
    how = plan, at = at_call, number = error, times = in_a_row, short_counts = one_byte;
    calls = injected = last_failed = unowned_closes = 0;
    memset(streaks, 0, sizeof streaks);
}

/* From now on it holds, or not, for the calling thread. */
void faults_arm(int flag) { armed = flag; }

int faults_calls(void) { return calls; }
int faults_injected(void) { return injected; }
/* Whether the latest call failed as planned. */
int faults_last_failed(void) { return last_failed; }
/* How often any thread closed what was not open: a close that was repeated, or a descriptor with two owners. */
int faults_unowned_closes(void) { return unowned_closes; }
const char *faults_name(int call) { return call < MOST ? names[call] : "?"; }

static int fails(const char *name, int kind)
{
    if (!armed)
        return 0;
    int call = calls++;
    if (call >= MOST)
        return 0;
    names[call] = name;
    int fault = 0, error = number;
    if (how == ONE)
        fault = call == at;
    else if (how == REST)
        fault = call == at || (call > at && name == names[at]);
    else if (how == EACH && kind != AT_ONCE) {
        fault = streaks[kind]++ < times || (streaks[kind] = 0);
        /* Only what moves bytes can be told that it would have to wait; the waiting for it is interrupted. */
        if (number == EAGAIN && kind == WAITS)
            error = EINTR;
    }
    last_failed = fault;
    if (fault) {
        injected++;
        errno = error;
    }
    return fault;
}

static size_t shorter(size_t size) { return armed && short_counts && size ? 1 : size; }

#define REAL(type, name, parameters) \
    static type(*real) parameters;   \
    if (!real)                       \
        real = (type(*) parameters)dlsym(RTLD_NEXT, #name);

#define CALL(type, name, kind, parameters, arguments) \
    type name parameters                              \
    {                                                 \
        REAL(type, name, parameters)                  \
        if (fails(#name, kind))                       \
            return -1;                                \
        return real arguments;                        \
    }

/* --- making and naming sockets --- */

CALL(int, socket, AT_ONCE, (int family, int type, int protocol), (family, type, protocol))
CALL(int, socketpair, AT_ONCE, (int family, int type, int protocol, int fds[2]), (family, type, protocol, fds))
CALL(int, bind, AT_ONCE, (int fd, const struct sockaddr *address, socklen_t size), (fd, address, size))
CALL(int, listen, AT_ONCE, (int fd, int backlog), (fd, backlog))
CALL(int, connect, WAITS, (int fd, const struct sockaddr *address, socklen_t size), (fd, address, size))
CALL(int, accept, WAITS, (int fd, struct sockaddr *address, socklen_t *size), (fd, address, size))
CALL(int, accept4, WAITS, (int fd, struct sockaddr *address, socklen_t *size, int flags), (fd, address, size, flags))
CALL(int, shutdown, AT_ONCE, (int fd, int direction), (fd, direction))
CALL(int, getsockname, AT_ONCE, (int fd, struct sockaddr *address, socklen_t *size), (fd, address, size))
CALL(int, getpeername, AT_ONCE, (int fd, struct sockaddr *address, socklen_t *size), (fd, address, size))
CALL(int, getsockopt, AT_ONCE, (int fd, int level, int option, void *value, socklen_t *size),
     (fd, level, option, value, size))
CALL(int, setsockopt, AT_ONCE, (int fd, int level, int option, const void *value, socklen_t size),
     (fd, level, option, value, size))

/* --- moving bytes --- */

CALL(ssize_t, recv, MOVES_BYTES, (int fd, void *buffer, size_t size, int flags), (fd, buffer, shorter(size), flags))
CALL(ssize_t, recvfrom, MOVES_BYTES,
     (int fd, void *buffer, size_t size, int flags, struct sockaddr *address, socklen_t *length),
     (fd, buffer, shorter(size), flags, address, length))
CALL(ssize_t, send, MOVES_BYTES, (int fd, const void *data, size_t size, int flags), (fd, data, shorter(size), flags))
CALL(ssize_t, sendto, MOVES_BYTES,
     (int fd, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length),
     (fd, data, shorter(size), flags, address, length))
CALL(ssize_t, read, MOVES_BYTES, (int fd, void *buffer, size_t size), (fd, buffer, shorter(size)))
CALL(ssize_t, write, MOVES_BYTES, (int fd, const void *data, size_t size), (fd, data, shorter(size)))
CALL(ssize_t, sendfile, MOVES_BYTES, (int to, int from, off_t *offset, size_t size), (to, from, offset, shorter(size)))
CALL(ssize_t, sendfile64, MOVES_BYTES, (int to, int from, off64_t *offset, size_t size),
     (to, from, offset, shorter(size)))

/* The first buffer that has room for it, cut to one byte. */
static struct msghdr shortened(const struct msghdr *message, struct iovec *one)
{
    struct msghdr copy = *message;
    for (size_t i = 0; armed && short_counts && i < message->msg_iovlen; i++)
        if (message->msg_iov[i].iov_len) {
            one->iov_base = message->msg_iov[i].iov_base;
            one->iov_len = 1;
            copy.msg_iov = one;
            copy.msg_iovlen = 1;
            break;
        }
    return copy;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    REAL(ssize_t, recvmsg, (int, struct msghdr *, int))
    if (fails("recvmsg", MOVES_BYTES))
        return -1;
    struct iovec one;
    struct msghdr copy = shortened(message, &one);
    ssize_t count = real(fd, &copy, flags);
    message->msg_namelen = copy.msg_namelen;
    message->msg_controllen = copy.msg_controllen;
    message->msg_flags = copy.msg_flags;
    return count;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    REAL(ssize_t, sendmsg, (int, const struct msghdr *, int))
    if (fails("sendmsg", MOVES_BYTES))
        return -1;
    struct iovec one;
    struct msghdr copy = shortened(message, &one);
    return real(fd, &copy, flags);
}

CALL(int, poll, WAITS, (struct pollfd *fds, nfds_t count, int milliseconds), (fds, count, milliseconds))
/* What Python polls with since 3.15. */
CALL(int, ppoll, WAITS,
     (struct pollfd *fds, nfds_t count, const struct timespec *time, const sigset_t *mask), (fds, count, time, mask))

/* --- descriptors and files --- */

int close(int fd)
{
    REAL(int, close, (int))
    int result = real(fd);
    if (result < 0) {
        unowned_closes += errno == EBADF;
        return result;
    }
    return fails("close", AT_ONCE) ? -1 : result;
}

CALL(int, close_range, AT_ONCE, (unsigned first, unsigned last, int flags), (first, last, flags))
CALL(int, dup, AT_ONCE, (int fd), (fd))
CALL(int, fchmod, AT_ONCE, (int fd, mode_t mode), (fd, mode))
CALL(int, flock, WAITS, (int fd, int operation), (fd, operation))
CALL(int, fstat64, AT_ONCE, (int fd, struct stat64 *status), (fd, status))
CALL(int, fstatat64, AT_ONCE, (int fd, const char *path, struct stat64 *status, int flags), (fd, path, status, flags))
CALL(int, stat64, AT_ONCE, (const char *path, struct stat64 *status), (path, status))
CALL(int, unlinkat, AT_ONCE, (int fd, const char *path, int flags), (fd, path, flags))
CALL(int, linkat, AT_ONCE, (int from, const char *old, int to, const char *new, int flags), (from, old, to, new, flags))

/* Those with a last argument that may be missing; handing on one that is makes no difference. */
#define CALL_WITH_MORE(name, kind, parameters, arguments, last) \
    int name(parameters, ...)                                   \
    {                                                           \
        REAL(int, name, (parameters, ...))                      \
        va_list more;                                           \
        va_start(more, last);                                   \
        void *argument = va_arg(more, void *);                  \
        va_end(more);                                           \
        if (fails(#name, kind))                                 \
            return -1;                                          \
        return real(arguments, argument);                       \
    }
#define TWO(first, second) first, second
#define THREE(first, second, third) first, second, third

CALL_WITH_MORE(fcntl, AT_ONCE, TWO(int fd, int command), TWO(fd, command), command)
CALL_WITH_MORE(fcntl64, AT_ONCE, TWO(int fd, int command), TWO(fd, command), command)
CALL_WITH_MORE(ioctl, AT_ONCE, TWO(int fd, unsigned long request), TWO(fd, request), request)
CALL_WITH_MORE(open, WAITS, TWO(const char *path, int flags), TWO(path, flags), flags)
CALL_WITH_MORE(open64, WAITS, TWO(const char *path, int flags), TWO(path, flags), flags)
CALL_WITH_MORE(openat, WAITS, THREE(int folder, const char *path, int flags), THREE(folder, path, flags), flags)
CALL_WITH_MORE(openat64, WAITS, THREE(int folder, const char *path, int flags), THREE(folder, path, flags), flags)
