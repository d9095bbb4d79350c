// Command shim is what packages launch, gate and enter run on the way into a machine. It is a
// program of its own because a start of the plugin's takes longer than all else of
// an exec: 50 of 65 ms, for the initialization of Nomad's packages.
//
// It has one thread that works, so the runtime need not find out for how many there is
// time: for that it reads the list of all mounts.
//
// `make build` builds it and, with the build tag shim, puts it into the plugin.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
package main

import (
	"os"

	"nomad-driver-nspawn/nspawn/enter/container"
	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/launch"
)

func main() {
	switch {
	case launch.Called(os.Args):
		launch.Main()
	case inside.Called(os.Args):
		inside.Main()
	case container.Called(os.Args):
		container.Main()
	}
	os.Exit(2) // nothing for people
}
