// Package host gives tests a real systemd in a disposable host, so that they do not touch
// the machine they run on.
//
// A disposable host is a set of namespaces (mount, pid, network, uts, ipc and
// cgroup) with Debian's systemd as PID 1 on a throw-away overlay of a cached
// root. It has its own cgroup subtree, an uplink (a veth pair with a private
// /30), optionally a link to a bridge that it shares with other hosts, and real
// directories for the upper layers of overlays. It boots in about a second, and nothing of
// it is left when it is down.
//
// [Up] boots one, [Host.Command] runs commands in it. One supervisor process
// per host, a copy of the calling program, makes everything and removes
// everything: on [Host.Down], when PID 1 ends, or when the caller dies in any
// way. If a supervisor is killed, the next Up removes its remains.
//
// It needs root, Linux 5.14, and debootstrap, which apt-get fetches when it is
// missing. Roots, guest images and the Nomad agent are cached below
// /var/cache/nomad-driver-nspawn, or $NSPAWN_TEST_CACHE. A host has the
// machine's kernel: loop devices and sysctls outside of net are shared with it.
//
// The command e2e/host/cmd offers the same to a shell, and runs the tests of
// other packages in a host. Build it if exit statuses matter: go run turns all
// of them but 0 into 1.
package host
