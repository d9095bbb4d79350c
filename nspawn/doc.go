// Package nspawn runs machines (systemd-nspawn containers) on this host.
//
// A machine is one transient service unit whose main process is
// systemd-nspawn. Its name is its handle: the unit, the machine registered
// with machined, and every file follow from it, so nothing needs to be
// remembered between calls. The leader is the machine's PID 1 as the host sees
// it; the payload is what the job asked to run, which is the leader itself or,
// below nspawn's stub init, PID 2 of the machine.
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
//     by which it is found again. All that the machine sees of the host is opened once, and
//     mounted there. The stage is then sealed.
//  3. Package machine turns the Spec into the command line (machine.Argv) and the unit's
//     properties (machine.Properties). Both are pure: golden files show them.
//  4. systemd starts the unit. Its command is the launcher (package launch), which enters
//     the stage and becomes systemd-nspawn. systemd-nspawn starts the shim
//     (enter/shim) as the payload. Launcher and shim are one program.
//  5. The shim comes to the gate (package gate). Manager.await checks the PID and the
//     user of the peer: is it the payload (begin.go)? The payload waits.
//  6. Manager.begin takes the steps, which finish the machine from outside: it
//     shows limits inside (cgroup) and connects the network (connect.go calls
//     network.Host.Connect, and that links.Host.Connect). It records that the payload
//     begins, and then gives the word: command, environment, user.
//     The shim executes the payload, or says why it cannot, and the start has failed.
//  7. A Follower (follow.go), which is there from before 4, tells what happens to the
//     machine. A guest that reboots goes through 4 to 6 again.
//
// # Where state lives
//
// systemd has the unit, with times, exit status and journal fields; it is the record. The
// kernel has the rest under the machine's name: links (network/links), nftables elements
// (network/ports) and mounts. Below Dirs.Run, in memory, are the machine's directory
// (gate, notify socket, credentials, files of names) and the pin of its stage; below
// Dirs.State are its writable layer and the store of images. Package dirs has the
// paths, but for those of the stages (stage/dir.go) and within the store (image/store).
// Manager.Remove removes the unit, and then the parts in the opposite order; each of them
// can be found by name alone, also by a plugin that starts after this one died (record.go).
// To look for a leak, begin with the list in parts/parts.go: each part has its remove.
//
// # Where a change goes
//
// An option of a job: README.md, "Adding an option".
//
// This package is the life of a machine: how it is started, followed, stopped and removed,
// and what a host has to offer for that. Below it are
//
//   - what a machine is: machine (Spec, and what it means for the command line and the unit);
//   - what it has on the host: parts, one file each. They are made of image and disk, rootfs,
//     idmap, quota, network, stage, and reached by mounts; guard protects what of the
//     host a machine writes to, dirs has the paths;
//   - what runs it: systemd (its unit), programs and launch (systemd-nspawn), places (what
//     systemd-nspawn may find in a root), gate (where the payload waits);
//   - what runs: process (leader and payload), cgroup (limits and use), enter (exec);
//   - and beneath: filelock, pidfd, thread, tree.
package nspawn
