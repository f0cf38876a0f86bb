/* The loops of raw.py and between.py in C: what is left when nothing but the system calls costs anything.
   Each returns 0, or the number of an error. */

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/socket.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

static int send_one(int fd, const char *buffer, size_t size)
{
    ssize_t count = send(fd, buffer, size, MSG_NOSIGNAL);
    return count == (ssize_t)size ? 0 : count < 0 ? errno : EMSGSIZE;
}

static int receive_some(int fd, char *buffer, size_t size, size_t *received)
{
    ssize_t count = recv(fd, buffer, size, 0);
    *received = count > 0 ? (size_t)count : 0;
    return count > 0 ? 0 : count < 0 ? errno : EPIPE;
}

int write_and_read(int out, int in, size_t size, long n)
{
    char *buffer = calloc(1, size);
    size_t received;
    int error = buffer ? 0 : ENOMEM;

    while (!error && n-- > 0) {
        error = send_one(out, buffer, size);
        if (!error)
            error = receive_some(in, buffer, size, &received);
    }
    free(buffer);
    return error;
}

int echo(int fd, size_t size, long n)
{
    char *buffer = calloc(1, size);
    size_t received;
    int error = buffer ? 0 : ENOMEM;

    while (!error && n-- > 0) {
        error = receive_some(fd, buffer, size, &received);
        if (!error)
            error = send_one(fd, buffer, received);
    }
    free(buffer);
    return error;
}

int send_messages(int fd, size_t size, long n)
{
    char *buffer = calloc(1, size);
    int error = buffer ? 0 : ENOMEM;

    while (!error && n-- > 0)
        error = send_one(fd, buffer, size);
    free(buffer);
    return error;
}

int receive_messages(int fd, size_t size, long n)
{
    char *buffer = calloc(1, size);
    unsigned long long left = (unsigned long long)size * (unsigned long long)n;
    size_t received;
    int error = buffer ? 0 : ENOMEM;

    while (!error && left > 0) {
        error = receive_some(fd, buffer, size, &received);
        left -= received;
    }
    free(buffer);
    return error;
}
