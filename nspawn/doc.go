// Package nspawn runs machines (systemd-nspawn containers) on this host.
//
// A machine is one transient service unit whose main process is
// systemd-nspawn. Its name is its handle: the unit, the machine registered
// with machined, and every file follow from it, so nothing needs to be
// remembered between calls. The leader is the machine's PID 1 as the host sees
// it. The payload is the process that the job asked for: the leader itself or, below
// nspawn's stub init, PID 2 of the machine.
//
// The unit outlives its processes: it stays loaded, with the exit status, until
// Manager.Remove.
//
// # A start, step by step
//
//  1. Manager.Start (start.go) takes the machine's lock (package filelock) and removes what
//     an earlier machine of the name left. At the same time it makes a stage (package
//     stage), which is the mount namespace that systemd-nspawn will run in.
//  2. parts.Maker.Prepare makes the parts (parts/parts.go lists them in order): a directory,
//     a range of UIDs, the writable layer, the image, reserved ports. The stage gets a pin,
//     by which it is found again. Everything that the machine sees of the host is opened
//     once, and mounted there. The stage is then sealed.
//  3. Package machine turns the Spec into the command line (machine.Argv) and the unit's
//     properties (machine.Properties). Both are pure: golden files show them.
//  4. systemd starts the unit. Its command is the launcher (package launch), which enters
//     the stage and becomes systemd-nspawn. systemd-nspawn starts the shim
//     (enter/shim) as the payload. Launcher and shim are one program.
//  5. The shim connects to the gate (package gate) and waits. Manager.await checks by PID
//     and user that the peer is the payload (begin.go).
//  6. Manager.begin runs the steps, which finish the machine from outside: it
//     shows limits inside (cgroup) and connects the network (connect.go calls
//     network.Host.Connect, which calls links.Host.Connect). It records that the payload
//     begins, and then sends the instructions: command, environment, user.
//     The shim executes the payload. If it cannot, it reports why, and the start fails.
//  7. A Follower (follow.go), which is created before step 4, reports what happens to the
//     machine. A guest that reboots goes through steps 4 to 6 again.
//
// # Where state lives
//
// The record of a machine is its unit in systemd, with times, exit status and journal
// fields. The kernel has the rest under the machine's name: links (network/links),
// nftables elements (network/ports) and mounts. Below Dirs.Run, in memory, are the
// machine's directory (gate, notify socket, credentials, files for name resolution), the
// members of its zone, and the pin of its stage. Below Dirs.State are its writable layer
// and the store of images.
// Package dirs has the paths, except those of the stages (stage/dir.go) and in the store
// (image/store).
//
// The slice of the machines without cores of their own has the cores that they share. It is
// the same for all machines, and remains until the host reboots.
//
// Manager.Remove removes the unit, and then the parts in the opposite order. Each of them
// can be found by name alone, even by a plugin that starts after this one died (record.go).
// To look for a leak, begin with the list in parts/parts.go: each part has its remove.
//
// # Where a change goes
//
// An option of a job: README.md, "Adding an option".
//
// This package contains the life of a machine: how it is started, followed, stopped and
// removed, and what the host must offer for that. Below it are
//
//   - what a machine is: machine (Spec, and what it means for the command line and the unit);
//   - what it has on the host: parts, one file each. They are made of image and disk, rootfs,
//     idmap, quota, network, stage, and reached by mounts; guard protects what of the
//     host a machine writes to, and dirs has the paths;
//   - what runs it: systemd (its unit), programs and launch (systemd-nspawn), places (what
//     systemd-nspawn may find in a root), gate (where the payload waits);
//   - what runs: process (leader and payload), cgroup (limits and use), enter (exec);
//   - and at the bottom: filelock, paths, pidfd, thread, tree.
package nspawn
