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
// Config becomes effect in pure steps: a Spec becomes the command line (argv)
// and the unit's properties (properties). Manager then makes them happen.
package nspawn
