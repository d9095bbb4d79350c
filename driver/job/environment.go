package job

import (
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"nomad-driver-nspawn/nspawn/machine"
)

type environmentOptions struct {
	Environment map[string]string `codec:"environment"`
}

var environmentSchema = options{"environment": stringMap("environment")}

func (c TaskConfig) validateEnvironment() error {
	var found mistakes
	for _, name := range slices.Sorted(maps.Keys(c.Environment)) {
		found.unless(machine.ValidEnvironmentName(name), "environment: %q is not a name that systemd passes on: use letters, digits and _", name)
	}
	return found.err()
}

// applyEnvironment takes the variables of the image, of Nomad and of the job, each
// over the ones before. Names of the image that systemd does not pass on are left
// out: the job's author could not change them.
func (c TaskConfig) applyEnvironment(in Input, spec *machine.Spec) error {
	env := map[string]string{}
	for _, variable := range in.Image.Config.Env {
		if name, value, ok := strings.Cut(variable, "="); ok && machine.ValidEnvironmentName(name) {
			env[name] = value
		}
	}
	maps.Copy(env, in.Task.Env)
	maps.Copy(env, c.Environment)
	var found mistakes
	for _, name := range slices.Sorted(maps.Keys(env)) {
		switch {
		case !utf8.ValidString(env[name]) || strings.Contains(env[name], "\x00"):
			found.refuse("env: the value of %q is not valid UTF-8, which systemd requires", name)
		case machine.ValidEnvironmentName(name):
		case strings.HasPrefix(name, "NOMAD_META_"):
			// Nomad keeps the dots of a meta key. Such a key is for templates
			// and constraints; it does not keep the task from running.
			delete(env, name)
		default:
			found.refuse("env: %q is not a name that systemd passes on: use letters, digits and _", name)
		}
	}
	spec.Environment = env
	return found.err()
}
