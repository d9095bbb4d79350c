package driver

import (
	"context"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/nomad/client/lib/numalib"
	"github.com/hashicorp/nomad/plugins/base"
	baseproto "github.com/hashicorp/nomad/plugins/base/proto"
	"github.com/hashicorp/nomad/plugins/drivers"
	driverproto "github.com/hashicorp/nomad/plugins/drivers/proto"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"

	"nomad-driver-nspawn/nspawn/machine"
)

// nomadVersion says how the messages of a version of Nomad differ from those of the
// version that this module is built with.
type nomadVersion struct {
	name string
	edit func(message any)
	// lifecycle means that the version calls Init and Shutdown, which no driver has to know.
	lifecycle bool
	// The task asks for 64 MiB of memory. This is the maximum that the version sends.
	memoryMax int64
	ticks     bool // Nomad says how fast the client's cores are
}

// nomadVersions have the differences of plugins/base/proto and plugins/drivers/proto
// between 1.6 and 2.0.5, and of what the scheduler fills in.
var nomadVersions = []nomadVersion{
	{name: "1.6: no cores", edit: edit(withoutTopology, withoutLabels)},
	{name: "1.7: cores, no SELinux labels", edit: edit(withoutLabels), ticks: true},
	{name: "1.8: SELinux labels", edit: edit(), ticks: true},
	{name: "1.11: secrets beside no maximum", edit: edit(), ticks: true, memoryMax: 16},
	{name: "1.11: secrets beside a lifted maximum", edit: edit(), ticks: true, memoryMax: -1 + 16},
	{name: "2.0.4: Init and Shutdown, names of volumes", edit: edit(withNames), ticks: true, lifecycle: true},
	{name: "a later one: new fields everywhere", edit: edit(withNews), ticks: true, lifecycle: true},
}

// edit returns a function that makes all of the changes. The last one is that of every
// version: the client's database does not keep the job's options of a running task.
func edit(changes ...func(any)) func(any) {
	return func(message any) {
		for _, change := range changes {
			change(message)
		}
		if request, ok := message.(*driverproto.RecoverTaskRequest); ok {
			request.Handle.Config.MsgpackDriverConfig = nil
		}
	}
}

func withoutTopology(message any) {
	if request, ok := message.(*baseproto.SetConfigRequest); ok && request.NomadConfig != nil {
		request.NomadConfig.Driver.Topology = nil
	}
}

func mountsOf(message any) []*driverproto.Mount {
	if request, ok := message.(*driverproto.StartTaskRequest); ok {
		return request.Task.Mounts
	}
	return nil
}

func withoutLabels(message any) {
	for _, mount := range mountsOf(message) {
		mount.SelinuxLabel = ""
	}
}

func withNames(message any) {
	for _, mount := range mountsOf(message) {
		addUnknown(reflected(mount), 6)
	}
}

func withNews(message any) { addNews(reflected(message)) }

func reflected(message any) protoreflect.Message {
	return protoadapt.MessageV2Of(message.(protoadapt.MessageV1)).ProtoReflect()
}

// addNews adds a field that this module does not know to a message and all messages in it.
func addNews(message protoreflect.Message) {
	addUnknown(message, 1000)
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap() && field.MapValue().Message() != nil:
			value.Map().Range(func(_ protoreflect.MapKey, value protoreflect.Value) bool {
				addNews(value.Message())
				return true
			})
		case field.IsList() && field.Message() != nil:
			for i := range value.List().Len() {
				addNews(value.List().Get(i).Message())
			}
		case !field.IsMap() && field.Message() != nil:
			addNews(value.Message())
		}
		return true
	})
}

func addUnknown(message protoreflect.Message, number protowire.Number) {
	field := protowire.AppendTag(nil, number, protowire.BytesType)
	message.SetUnknown(append(message.GetUnknown(), protowire.AppendString(field, "new")...))
}

// options has each message edited on its way to the plugin, and reports the connection.
func (v nomadVersion) options(connected **grpc.ClientConn) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			*connected = conn
			v.edit(request)
			return invoke(ctx, method, request, reply, conn, opts...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, conn, method, opts...)
			return editedStream{stream, v.edit}, err
		}),
	}
}

type editedStream struct {
	grpc.ClientStream
	edit func(any)
}

func (s editedStream) SendMsg(message any) error {
	s.edit(message)
	return s.ClientStream.SendMsg(message)
}

// nomadClient is the plugin in a process of its own, and Nomad's side of it.
type nomadClient struct {
	drivers.DriverPlugin
	process *goplugin.Client
	conn    *grpc.ClientConn
	version nomadVersion
}

// newNomadClient starts the plugin and configures it as a client of the version does.
func newNomadClient(t *testing.T, version nomadVersion) *nomadClient {
	c := &nomadClient{version: version}
	c.DriverPlugin, c.process = startBinary(t, version.options(&c.conn)...)
	info, err := c.PluginInfo()
	must.NoError(t, err)
	must.Eq(t, Name, info.Name)
	must.SliceContains(t, info.PluginApiVersions, "v0.1.0")
	config := encodedConfig(t, "volumes = true")
	must.NoError(t, c.SetConfig(&base.Config{PluginConfig: config, ApiVersion: "v0.1.0"})) // on throw-away instances
	must.NoError(t, c.SetConfig(&base.Config{PluginConfig: config, ApiVersion: "v0.1.0", AgentConfig: &base.AgentConfig{
		Driver: &base.ClientDriverConfig{ClientMinPort: 14000, ClientMaxPort: 14512, Topology: &numalib.Topology{
			Nodes: []uint8{0}, Distances: numalib.SLIT{{10}}, Cores: []numalib.Core{{BaseSpeed: 2000}, {ID: 1, BaseSpeed: 2000}},
		}},
	}}))
	c.unknown(t, "Init")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	fingerprints, err := c.Fingerprint(ctx)
	must.NoError(t, err)
	fingerprint := <-fingerprints
	must.NotNil(t, fingerprint)
	must.Eq(t, drivers.HealthStateHealthy, fingerprint.Health, must.Sprint(fingerprint.HealthDescription))
	return c
}

// unknown calls what Nomad takes the lack of for an old plugin, if it is answered as such.
func (c *nomadClient) unknown(t *testing.T, method string) {
	if !c.version.lifecycle {
		return
	}
	for _, service := range []string{"base.proto.BasePlugin", "drivers.proto.Driver"} {
		err := c.conn.Invoke(t.Context(), "/hashicorp.nomad.plugins."+service+"/"+method, &emptypb.Empty{}, &emptypb.Empty{})
		must.Eq(t, codes.Unimplemented, status.Code(err), must.Sprint(err))
	}
	_, err := c.Capabilities()
	must.NoError(t, err)
}

// TestHostContract runs a task by the messages of each version of Nomad, over two processes
// of the plugin.
func TestHostContract(t *testing.T) {
	for _, version := range nomadVersions {
		t.Run(version.name, func(t *testing.T) {
			volume := t.TempDir()
			must.NoError(t, os.WriteFile(filepath.Join(volume, "file"), []byte("volume\n"), 0o644))
			task := newTask(t, newHarness(t, ""), script("cat /volume/file; echo $GREETING >/alloc/data/greeting && cat /alloc/data/greeting; "+
				"touch /alloc/logs/x 2>/dev/null || echo logs are read-only; touch /volume/x 2>/dev/null || echo volume is read-only; "+untilStopped))
			task.Mounts = []*drivers.MountConfig{{TaskPath: "/volume", HostPath: volume, Readonly: true, PropagationMode: "private", SELinuxLabel: "z"}}
			task.Resources.NomadResources.Memory.MemoryMB = 64
			task.Resources.NomadResources.Memory.MemoryMaxMB = version.memoryMax

			first := newNomadClient(t, version)
			handle, network, err := first.StartTask(task)
			must.NoError(t, err)
			must.Nil(t, network)
			must.Positive(t, handle.Version)
			awaitLog(t, task, "stdout", "volume\nhello\nlogs are read-only\nvolume is read-only\nup\n")
			must.Eq(t, "67108864", unitProperty(t, task, "MemoryMax"))
			first.checkUse(t, task)
			must.NoError(t, unix.Kill(first.process.ReattachConfig().Pid, unix.SIGKILL))

			second := newNomadClient(t, version)
			must.NoError(t, second.RecoverTask(handle))
			second.checkUse(t, task)
			must.NoError(t, second.StopTask(task.ID, 30*time.Second, ""))
			results, err := second.WaitTask(t.Context(), task.ID)
			must.NoError(t, err)
			must.Eq(t, 5, (<-results).ExitCode)
			must.NoError(t, second.DestroyTask(task.ID, true))
			second.unknown(t, "Shutdown")
			second.process.Kill()
		})
	}
}

// checkUse asks for numbers and runs commands.
func (c *nomadClient) checkUse(t *testing.T, task *drivers.TaskConfig) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	usages, err := c.TaskStats(ctx, task.ID, 100*time.Millisecond)
	must.NoError(t, err)
	result, err := c.ExecTask(task.ID, []string{"/bin/sh", "-c", "echo $GREETING; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exit 3"}, time.Minute)
	must.NoError(t, err)
	must.Eq(t, 3, result.ExitResult.ExitCode)
	must.Eq(t, "hello\n", string(result.Stdout))
	for usage := range usages {
		cpu := usage.ResourceUsage.CpuStats
		must.False(t, math.IsNaN(cpu.TotalTicks) || math.IsInf(cpu.TotalTicks, 0), must.Sprint(cpu))
		must.Positive(t, usage.ResourceUsage.MemoryStats.RSS)
		if cpu.Percent > 0 {
			if c.version.ticks { // of 2000 MHz
				must.InDelta(t, cpu.Percent*20, cpu.TotalTicks, 1)
			}
			break
		}
	}
	stream := &typing{ctx: ctx, input: "typed\n"}
	exec, ok := c.DriverPlugin.(drivers.ExecTaskStreamingRawDriver)
	must.True(t, ok)
	must.NoError(t, exec.ExecTaskStreamingRaw(ctx, task.ID, []string{"/bin/sh", "-c", "cat; exit 4"}, false, stream))
	must.Eq(t, "typed\n", stream.output.String())
	must.Eq(t, 4, stream.code)
	must.NoError(t, c.SignalTask(task.ID, "SIGCONT"))
}

// typing is the user of an exec, who types a text and its end.
type typing struct {
	ctx    context.Context
	input  string
	closed bool
	output strings.Builder
	code   int
}

func (s *typing) Recv() (*drivers.ExecTaskStreamingRequestMsg, error) {
	input := &driverproto.ExecTaskStreamingIOOperation{Data: []byte(s.input)}
	switch {
	case s.input != "":
		s.input = ""
	case !s.closed:
		input, s.closed = &driverproto.ExecTaskStreamingIOOperation{Close: true}, true
	default:
		<-s.ctx.Done()
		return nil, s.ctx.Err()
	}
	return &drivers.ExecTaskStreamingRequestMsg{Stdin: input}, nil
}

func (s *typing) Send(message *drivers.ExecTaskStreamingResponseMsg) error {
	s.output.Write(message.GetStdout().GetData())
	if message.Exited {
		s.code = int(message.Result.ExitCode)
	}
	return nil
}

func unitProperty(t *testing.T, task *drivers.TaskConfig, name string) string {
	unit := machine.UnitName(machine.Name(task.AllocID, task.Name))
	out, err := exec.Command("systemctl", "show", "--value", "--property="+name, unit).Output()
	must.NoError(t, err)
	return strings.TrimSpace(string(out))
}
