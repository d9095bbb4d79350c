//go:build e2e

package e2e

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
)

var environmentTests = []test{
	{"environment is passed byte for byte", testAwkwardEnvironment},
	{"environment is secret", testSecretEnvironment},
	{"environment does not reach nspawn", testLoaderEnvironment},
	{"variables of any name", testVariablesOfAnyName},
	{"users", testUsers},
	{"working directory", testWorkingDirectory},
	{"commands that cannot be executed", testCannotExecute},
}

func testAwkwardEnvironment(l *lab) {
	values := map[string]string{
		"EMPTY":     "",
		"SPACES":    "  two words  ",
		"QUOTES":    `"double" and 'single'`,
		"DOLLAR":    "$HOME $$ ${HOME} %n %%",
		"BACKSLASH": `a\b\\c\n`,
		"BACKTICK":  "`id`",
		"NEWLINE":   "one\ntwo\n\n# three\n",
		"TAB":       "\ttab",
		"UNICODE":   "grüße, 世界 🦉",
		"EQUALS":    "a=b=c",
		"SEMICOLON": "; # no comment",
		"PATH":      "/bin:/usr/bin:/made up",
	}
	var script, env strings.Builder
	names := slices.Sorted(maps.Keys(values))
	for _, name := range names {
		fmt.Fprintf(&script, "printf %%s \"$%s\" | base64 -w0; echo\n", name)
		fmt.Fprintf(&env, "%s = %s\n", name, quote(values[name]))
	}
	l.eachMode(func(l *lab, config string) {
		out := l.finish(task{config: config, script: script.String(), more: "env {\n" + env.String() + "}"})
		lines := strings.Split(strings.TrimSuffix(out.Stdout, "\n"), "\n")
		must.SliceLen(l, len(names), lines, must.Sprint(out))
		for i, name := range names {
			text, err := base64.StdEncoding.DecodeString(lines[i])
			must.NoError(l, err)
			must.Eq(l, values[name], string(text), must.Sprint(name))
		}
	})
}

func testSecretEnvironment(l *lab) {
	const secret = "hunter2-and-some-more"
	al := l.ready(task{script: loop, more: "env { PASSWORD = \"" + secret + "\" }\nidentity { env = true }"})
	token := strings.TrimSpace(l.exec(al, "sh", "-c", "echo $NOMAD_TOKEN"))
	must.Greater(l, 100, len(token))
	must.Eq(l, secret+"\n", l.exec(al, "sh", "-c", "echo $PASSWORD"))

	const asNobody = "setpriv --reuid=65534 --regid=65534 --clear-groups "
	shown := map[string]string{
		"command lines":   l.onHost("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"),
		"systemctl show":  l.onHost("sh", "-c", asNobody+"systemctl show "+unitOf(al)),
		"systemctl cat":   l.onHost("sh", "-c", asNobody+"systemctl cat "+unitOf(al)),
		"machine's files": l.onHost("sh", "-c", asNobody+"grep -r . /run/nomad-driver-nspawn 2>/dev/null || true"),
		"environ":         l.onHost("sh", "-c", asNobody+"cat /proc/[0-9]*/environ 2>/dev/null || true"),
	}
	var err error
	shown["the agent's log"], err = l.agent.Log(l.ctx)
	must.NoError(l, err)
	must.StrContains(l, shown["command lines"], machineOf(al))
	must.StrContains(l, shown["systemctl show"], machineOf(al))
	must.StrContains(l, shown["the agent's log"], "[DEBUG]")
	for where, text := range shown {
		must.StrNotContains(l, text, secret, must.Sprint(where))
		must.StrNotContains(l, text, token, must.Sprint(where))
	}
}

// Variables of the dynamic loader and of systemd would take effect on the host, as root,
// if they were in the environment of systemd-nspawn.
func testLoaderEnvironment(l *lab) {
	al := l.ready(task{
		script: "echo $LD_PRELOAD $SYSTEMD_LOG_LEVEL; " + loop,
		more:   "env {\nLD_PRELOAD = \"/tmp/evil.so\"\nSYSTEMD_LOG_LEVEL = \"debug\"\n}",
	})
	must.StrContains(l, l.waitLog(al, agent.Stdout, "ready\n"), "/tmp/evil.so debug\n")
	environ := l.onHost("sh", "-c", "tr '\\0' '\\n' </proc/"+l.pid(al)+"/environ")
	must.StrContains(l, environ, "NOTIFY_SOCKET=")
	for _, own := range []string{"NOMAD_", "LD_PRELOAD", "SYSTEMD_LOG_LEVEL"} {
		must.StrNotContains(l, environ, own)
	}
}

// A shell passes on only variables that it can name itself, so the script reads the
// environment of its process.
func testVariablesOfAnyName(l *lab) {
	const more = "env = {\n\"discovery.type\" = \"single-node\"\n\"my-option\" = \"1\"\n\"HOME\" = \"/own\"\n}"
	l.eachMode(func(l *lab, config string) {
		out := l.finish(task{config: "user = \"app\"\n" + config, script: `tr '\0' '\n' </proc/$$/environ`, more: more})
		lines := strings.Split(out.Stdout, "\n")
		for _, want := range []string{"discovery.type=single-node", "my-option=1", "HOME=/own", "USER=app"} {
			must.SliceContains(l, lines, want)
		}
	})
}

func testWorkingDirectory(l *lab) {
	l.eachMode(func(l *lab, config string) {
		out := l.finish(task{config: "working_directory = \"/srv/app/data\"\n" + config, script: "pwd; touch here && stat -c %U .", more: "user = \"app\""})
		must.Eq(l, agent.Output{Stdout: "/srv/app/data\napp\n"}, out)
	})
}

// A command that cannot be executed did not run. So there is no exit code, but a start
// failure, in all modes alike. Nomad does not try it again.
func testCannotExecute(l *lab) {
	for command, want := range map[string]string{
		"no-such-command": "no-such-command: not found in the container: it is in no directory of PATH",
		"/bin/no-such":    "/bin/no-such: not found in the container (exit status 127)",
		"/etc/passwd":     "/etc/passwd: is not executable (mode 0644) (exit status 126)",
		"/etc":            "/etc: is a directory (exit status 126)",
	} {
		l.eachMode(func(l *lab, config string) {
			al := l.start(job{tasks: []task{{config: fmt.Sprintf("image = \"busybox\"\ncommand = %q\n%s", command, config)}}})
			must.StrContains(l, l.refusal(al), want)
			l.gone(al)
		})
	}
}

// The busybox image has no getent, which nspawn's own option for users runs.
func testUsers(l *lab) {
	for user, want := range map[string]string{
		"app":         "1000:1000",
		"1000":        "1000:1000",
		"1234":        "1234:0",
		"app:nogroup": "1000:65534",
	} {
		l.sub(user, func(l *lab) {
			const script = "echo $(id -u):$(id -g); echo hi >&2; touch $NOMAD_TASK_DIR/mine $NOMAD_ALLOC_DIR/data/mine"
			out := l.finish(task{script: script, more: "user = " + quote(user)})
			must.Eq(l, want+"\n", out.Stdout, must.Sprint(out))
			must.Eq(l, "hi\n", out.Stderr)
			must.Zero(l, out.Code)
		})
	}
	// Many images do so to send their logs to the container's log.
	for _, user := range []string{"root", "app"} {
		l.sub("opens stderr again as "+user, func(l *lab) {
			out := l.finish(task{script: "echo hi >/dev/stderr", more: "user = " + quote(user)})
			must.Eq(l, "hi\n", out.Stderr)
		})
	}
	l.sub("unknown", func(l *lab) {
		al := l.start(job{tasks: []task{{script: "true", more: `user = "nemo"`}}})
		must.StrContains(l, l.refusal(al), `find user "nemo"`)
	})
	l.sub("exec", func(l *lab) {
		al := l.ready(task{script: loop, more: `user = "app"`})
		must.Eq(l, "1000\n", l.exec(al, "id", "-u"))
	})
}
