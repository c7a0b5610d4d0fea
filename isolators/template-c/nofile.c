// example/nofile: limits the open files of each process in a container, and tells it in the variable NOFILE. Configure
// the limit with options = { limit = 512 }. Build with: cc -shared -fPIC -o example-nofile.so nofile.c
#include "coracle_isolator.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static unsigned long limit = 1024;

// Options come as JSON. There is one, so that no parser is needed.
static int32_t configure(const coracle_call *call, const char *options) {
    if (strcmp(options, "{}") != 0 && sscanf(options, "{\"limit\":%lu}", &limit) != 1)
        return call->fail(call, EINVAL, "its options are not of the form { limit = 512 }");
    return 0;
}

// For each process: the adjustment has the field names of the OCI runtime specification.
static int32_t process(const coracle_call *call, const char *config) {
    char text[256];
    (void)config;
    int length = snprintf(text, sizeof text,
                          "{\"process\": {\"env\": [\"NOFILE=%lu\"], \"rlimits\": "
                          "[{\"type\": \"RLIMIT_NOFILE\", \"soft\": %lu, \"hard\": %lu}]}}",
                          limit, limit, limit);
    return call->write(call, text, (size_t)length);
}

static const coracle_isolator isolator = {
    .abi_version = CORACLE_ISOLATOR_ABI,
    .struct_size = sizeof(coracle_isolator),
    .name = "example/nofile",
    .version = "1.0.0",
    .flags = CORACLE_ISOLATOR_ALL,
    .configure = configure,
    .process = process,
};

const coracle_isolator *coracle_isolator_table(void) { return &isolator; }
