// The isolator contract, version 1.
//
// An isolator looks after one thing of a container: a limit, a volume, a device, a record of what ran. As a plugin it
// is a shared object that exports one function, coracle_isolator_table(), which returns a constant table. What it
// does not implement is NULL in the table. `coracle isolator check FILE.so` tells all that is wrong with one.
//
// Where: each call is made in a process that the plugin has to itself, one for each command of the runtime that needs
// it. It runs on the host, as the runtime's user, without capabilities, unable to write files, to start programs or to
// signal others, unless the configuration grants that; never in the container. Calls come one after the other, from
// one thread. Nothing is kept in memory from one command to the next: what must be remembered of a container is
// read back from the kernel or kept in a file. The process may be killed between two calls.
// Order: as the functions stand here, but for those after cleanup, which say when. Of two isolators the one that is named in `after`, or that names the other in
// `before`, goes first; cleanup goes the other way round.
// Failure: a call returns 0 or a negative errno, and may say why through coracle_call.fail first. What fails in
// prepare, process, validate, provide, isolate or join ends the launch; cleanup is called then. A call that crashes, or is not
// done by its deadline (5 s unless the configuration says otherwise), has failed, and its process is killed.
// Memory: each side keeps its own. What is passed to a call (texts, structures, descriptors) ends with the call; what
// the table points to stays as it is for ever. Documents are JSON in UTF-8 with a terminating NUL; their schemas are in
// docs/schemas.
// Versions: tables and structures only ever grow at their end. Each begins with its size, and neither side reads beyond
// the size that the other has told. A function that the table is too short for is NULL.
//
// Made from isolators/abi/src/table.rs by its tests (UPDATE=1 cargo test -p coracle-isolator-abi); not to be edited.

#ifndef CORACLE_ISOLATOR_H
#define CORACLE_ISOLATOR_H


#include <stddef.h>
#include <stdint.h>

// The version of the contract that this header tells of. A table of another version is refused.
#define CORACLE_ISOLATOR_ABI 1

// In coracle_isolator.flags: it does its work for containers made from an OCI bundle.
#define CORACLE_ISOLATOR_OCI 1

// In coracle_isolator.flags: for the outermost container of a pod.
#define CORACLE_ISOLATOR_POD 2

// In coracle_isolator.flags: for containers inside another one.
#define CORACLE_ISOLATOR_NESTED 4

// In coracle_isolator.flags: for containers that look into another one and end with their session.
#define CORACLE_ISOLATOR_DEBUG 8

// In coracle_isolator.flags: for every kind of container.
#define CORACLE_ISOLATOR_ALL 15

// Where the result of a call goes. Of no use after the call.
typedef struct coracle_call {
    // The size of this structure, in bytes.
    uint32_t struct_size;
    // The host's own; not to be touched.
    void *host;
    // Appends `length` bytes to the document that the call returns. Returns 0, or -EMSGSIZE where the document
    // grows beyond 4 MiB. A call that writes nothing returns the empty document.
    int32_t (*write)(const struct coracle_call *call, const char *text, size_t length);
    // Says why the call fails: `why` for people, lower case, no full stop; `error` for programs, an errno, or 0
    // where no system call failed. Returns what the call is to return, which then ends with
    // `return call->fail(call, ENOENT, "there is no volume data")`.
    int32_t (*fail)(const struct coracle_call *call, int32_t error, const char *why);
    // The directory of the containers' states: there may be another container of the same ID in another one. Of a
    // struct_size that ends before, a host that does not tell.
    const char *states;
} coracle_call;

// The directory of a container's cgroup in one hierarchy.
typedef struct coracle_cgroup {
    // The controllers of the hierarchy, with commas between them: `cpu,cpuacct`. `unified` for the version 2 tree.
    const char *controllers;
    // The directory, open.
    int32_t fd;
} coracle_cgroup;

// A waiting or running container. The descriptors are closed after the call; dup(2) one to keep it.
typedef struct coracle_handles {
    // The size of this structure, in bytes.
    uint32_t struct_size;
    // The first process of the container, in join the process that joins it (pidfd_open(2)); -1 where there is none.
    int32_t pidfd;
    // The container's ID.
    const char *id;
    // The configuration of the container as it was made of all adjustments: config.json of the OCI runtime
    // specification.
    const char *spec;
    // The version of cgroups that carries the limits, 1 or 2.
    uint32_t cgroup_version;
    // How many `cgroups` there are: one on version 2, one for each hierarchy on version 1, none for a container
    // without cgroups.
    uint32_t cgroup_count;
    // The container's cgroups.
    const struct coracle_cgroup *cgroups;
} coracle_handles;

// A plugin's table. What comes before the functions is in every table.
typedef struct coracle_isolator {
    // CORACLE_ISOLATOR_ABI, as the plugin was built with it.
    uint32_t abi_version;
    // sizeof(coracle_isolator), as the plugin was built with it.
    uint32_t struct_size;
    // A name that never changes, `family/subject`, of letters, digits, `-`, `_`, `.` and one or more `/`.
    const char *name;
    // The plugin's own version, for people.
    const char *version;
    // Names of isolators that go first, then NULL; or NULL. Those that are not configured are ignored.
    const char *const *after;
    // Names of isolators that go later, then NULL; or NULL.
    const char *const *before;
    // For which kinds of container it does its work: CORACLE_ISOLATOR_OCI and so on. The launch of another kind is
    // refused: nothing is skipped silently.
    uint64_t flags;
    // Once in each process, before all other calls: the options of the configuration, an object, `{}` where there are
    // none. NULL: any options are refused.
    int32_t (*configure)(const struct coracle_call *call, const char *options);
    // When the runtime looks after what an earlier one left (`coracle recover`): {"states": [...], "orphans": [...]},
    // the containers that are known, and the IDs of others that left something behind. cleanup follows for each of
    // the orphans. A failure is reported and stops nothing.
    int32_t (*recover)(const struct coracle_call *call, const char *states);
    // Once a launch, before the process exists: the container that is about to be made. Returns an adjustment: what
    // the isolator wants changed in the plan. No side effects: the plan may still be refused, or only be printed. Two
    // isolators that set one field are an error that names both.
    int32_t (*prepare)(const struct coracle_call *call, const char *config);
    // For each process before it is started in the container: the first one, after prepare, and each `exec` later.
    // Returns an adjustment that sets fields of `process`, linux.seccomp and linux.landlock alone. No side effects.
    int32_t (*process)(const struct coracle_call *call, const char *config);
    // Once a launch: the final configuration, all adjustments applied. Failing refuses it. No side effects.
    int32_t (*validate)(const struct coracle_call *call, const char *spec);
    // Once a launch: the process exists and waits, in its cgroup. Act on the host now. What is changed outside of the
    // container's own cgroup and namespaces must be undone by cleanup.
    int32_t (*isolate)(const struct coracle_call *call, const struct coracle_handles *container);
    // For each process that is executed in the running container, and waits in its cgroup.
    int32_t (*join)(const struct coracle_call *call, const struct coracle_handles *container);
    // When somebody begins to watch the container: `run` while it waits, a warden, `events`. Sets *fd to a descriptor that
    // becomes readable, or has something urgent (POLLPRI), when there may be a limitation, and leaves it at -1 where
    // there is nothing to watch. The descriptor is the host's from then on, which reads it empty each time.
    int32_t (*watch)(const struct coracle_call *call,
                     const struct coracle_handles *container,
                     int32_t *fd);
    // When the descriptor of watch is readable: returns the limit that the container has run into, or nothing. A
    // container that has is killed, unless the configuration wants it told only.
    int32_t (*limitation)(const struct coracle_call *call, const struct coracle_handles *container);
    // Any number of times while the container lives: new limits, as linux.resources has them. What is absent stays as
    // it is. After a failure the runtime writes back what the files of the cgroup held.
    int32_t (*update)(const struct coracle_call *call,
                      const struct coracle_handles *container,
                      const char *resources);
    // Any number of times: returns what the container uses, only what the isolator looks after.
    int32_t (*usage)(const struct coracle_call *call, const struct coracle_handles *container);
    // Any number of times: returns what others may know of the container, an object.
    int32_t (*status)(const struct coracle_call *call, const struct coracle_handles *container);
    // When the last process is gone, if prepare was called, whatever came of it. Perhaps more than once, perhaps for a
    // container that the isolator does not know: neither is a failure, nor is what is gone already. After a failure the
    // other isolators are cleaned up all the same, and the next `delete` calls again.
    int32_t (*cleanup)(const struct coracle_call *call, const char *id);
    // Any number of times while the container lives: new values of linux.intelRdt. What is absent stays as it is. After
    // a failure nothing may have changed: the runtime can't put it back.
    int32_t (*update_intel_rdt)(const struct coracle_call *call,
                                const struct coracle_handles *container,
                                const char *rdt);
    // When a launch fails after isolate, in the process that made that call, whether or not the container's process is
    // still there: gives back what would go with its namespaces. cleanup follows in any case.
    int32_t (*give_back)(const struct coracle_call *call, const char *id);
    // Once a launch, after validate, and before the container's cgroups and process are made: the final configuration,
    // as in prepare. Make here what the mounts and devices of the adjustment come from; undone by cleanup, which is
    // called whatever comes of it.
    int32_t (*provide)(const struct coracle_call *call, const char *config);
} coracle_isolator;

#ifdef __cplusplus
extern "C" {
#endif

// The one function that a plugin exports. Returns its table, the same at each call.
const coracle_isolator *coracle_isolator_table(void);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // CORACLE_ISOLATOR_H
