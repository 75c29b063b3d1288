
=pod

=head1 NAME

OutboxTest::Kafka - a real Apache Kafka of one node, or more

=head1 SYNOPSIS

  my $kafka = OutboxTest::Kafka->new(authorizer => 1);
  $kafka->start;
  $kafka->create_topic('orders', 4, 'max.message.bytes' => 100000);
  ... $kafka->bootstrap ...
  $kafka->kill9;
  $kafka->start;       # same port, same data
  $kafka->pause;       # it hangs, with its connections open
  $kafka->resume;
  $kafka->stop;

  my $second = $kafka->another_broker(2);    # a broker of the same cluster
  $second->start;
  $kafka->create_topic_on('orders', [ 1, 2 ]);
  $second->kill9;      # partition 1 has no leader

Options of new: C<auto_create> makes topics on first use.  C<authorizer> turns
on access rights: clients of C<bootstrap> are User:ANONYMOUS and may do what no
rule forbids, and C<bootstrap_sasl> wants SASL/PLAIN, with the users admin
(password admin-secret, may do everything; the tests' own requests are his) and
outbox (outbox-secret).  C<config> is a hash of further properties.

=cut

package OutboxTest::Kafka;

use strict;
use warnings;

use parent 'OutboxTest::Broker';

use Carp;
use Errno qw(EADDRINUSE);
use File::Basename qw(dirname);
use File::Path qw(mkpath rmtree);
use File::Temp ();
use IO::Socket::INET;
use MIME::Base64 qw(encode_base64);
use OutboxTest::Guard
  qw(tool spawn_guarded reap process_state);
use PostgreSQL::Test::Utils ();
use Time::HiRes qw(sleep);

# Ports below the range of outgoing connections: in it another process's
# connection was found to answer.
use constant { LOW_PORT => 20000, HIGH_PORT => 32000 };

my %taken;
my @nodes;
my $owner = $$;

sub new
{
	my ($class, %opts) = @_;
	return $class->_make(opts => \%opts, node_id => 1, cluster_id => _new_cluster_id());
}

# A broker with that id of the same cluster, with the same options.
sub another_broker
{
	my ($self, $node_id) = @_;
	return ref($self)->_make(
		opts => $self->{opts},
		node_id => $node_id,
		cluster_id => $self->{cluster_id},
		controller_port => $self->{controller_port});
}

sub _make
{
	my ($class, %fields) = @_;
	my $self = bless {
		%fields,
		dir => File::Temp::tempdir(
			'kafka_XXXXXX', DIR => $PostgreSQL::Test::Utils::tmp_check),
		lib => _lib(),
		pid => undef,
	}, $class;

	push @nodes, $self;
	$self->_choose_ports;
	$self->_format;
	return $self;
}

# Kafka's own form: a UUID in URL-safe base64, and no dash in front, since it
# goes over a command line.
sub _new_cluster_id
{
	my $id =
	  'T' . encode_base64(join('', map { chr(int(rand(256))) } 1 .. 16), '');
	$id =~ tr{+/}{-_};

	# The 22nd character holds two bits only.
	return substr($id, 0, 21) . 'A';
}

sub _lib
{
	return $ENV{OUTBOX_KAFKA_LIB} if defined $ENV{OUTBOX_KAFKA_LIB};

	my $script = dirname(__FILE__) . '/../../../test/fetch-kafka.sh';
	my $lib = `$script`;
	chomp $lib;
	die "no Apache Kafka\n" if $? != 0 || $lib eq '';
	return $ENV{OUTBOX_KAFKA_LIB} = $lib;
}

sub _free_port
{
	while (1)
	{
		my $port = LOW_PORT + int(rand(HIGH_PORT - LOW_PORT));

		next if $taken{$port};
		my $socket = IO::Socket::INET->new(
			LocalAddr => '127.0.0.1',
			LocalPort => $port,
			Proto => 'tcp',
			Listen => 1) or next;
		close($socket);
		$taken{$port} = 1;
		return $port;
	}
}

sub _choose_ports
{
	my ($self) = @_;

	$self->{$_} //= _free_port() foreach (qw(port controller_port sasl_port));
	$self->{bootstrap} = "127.0.0.1:$self->{port}";
	$self->_write_config;
	return;
}

sub _write_config
{
	my ($self) = @_;
	my $listener = "PLAINTEXT://127.0.0.1:$self->{port}";
	my $sasl = "SASL://127.0.0.1:$self->{sasl_port}";

	# The first node is the controller, too.
	my $first = $self->{node_id} == 1;
	my $controller = $first ? ",CONTROLLER://127.0.0.1:$self->{controller_port}" : '';
	my %config = (
		'process.roles' => $first ? 'broker,controller' : 'broker',
		'node.id' => $self->{node_id},
		'controller.quorum.voters' =>
		  "1\@127.0.0.1:$self->{controller_port}",
		'controller.listener.names' => 'CONTROLLER',
		'listeners' => "$listener$controller",
		'log.dirs' => "$self->{dir}/data",
		'num.partitions' => 1,
		'auto.create.topics.enable' =>
		  $self->{opts}{auto_create} ? 'true' : 'false',
		'offsets.topic.replication.factor' => 1,
		'offsets.topic.num.partitions' => 4,
		'transaction.state.log.replication.factor' => 1,
		'transaction.state.log.min.isr' => 1,
		'transaction.state.log.num.partitions' => 4,
		'group.initial.rebalance.delay.ms' => 0,

		# After kill -9 the controller waits for the old session to end.
		'broker.session.timeout.ms' => 3000,
		'broker.heartbeat.interval.ms' => 500,
		'log.cleaner.enable' => 'false',
		'controlled.shutdown.enable' => 'false');

	if ($self->{opts}{authorizer})
	{
		my $users = 'org.apache.kafka.common.security.plain.PlainLoginModule'
		  . ' required username="admin" password="admin-secret"'
		  . ' user_admin="admin-secret" user_outbox="outbox-secret";';

		# The broker and its controller talk as admin, lest a rule about
		# ANONYMOUS would stop them.
		%config = (
			%config,
			'listeners' => "$listener,$sasl$controller",
			'listener.security.protocol.map' =>
			  'PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT',
			'inter.broker.listener.name' => 'SASL',
			'sasl.enabled.mechanisms' => 'PLAIN',
			'sasl.mechanism.inter.broker.protocol' => 'PLAIN',
			'sasl.mechanism.controller.protocol' => 'PLAIN',
			'listener.name.sasl.plain.sasl.jaas.config' => $users,
			'listener.name.controller.plain.sasl.jaas.config' => $users,
			'listener.name.controller.sasl.enabled.mechanisms' => 'PLAIN',
			'authorizer.class.name' =>
			  'org.apache.kafka.metadata.authorizer.StandardAuthorizer',
			'allow.everyone.if.no.acl.found' => 'true',
			'super.users' => 'User:admin');
	}
	%config = (%config, %{ $self->{opts}{config} // {} });

	open(my $file, '>', "$self->{dir}/server.properties") or die "$!";
	print $file "$_=$config{$_}\n" foreach (sort keys %config);
	close($file) or die "$!";
	return;
}

sub _java
{
	my ($self, @args) = @_;
	my $archive = dirname($self->{lib}) . '/kafka.jsa';

	# The star is Java's; no shell comes between.
	return (
		'java', '-Xms256m', '-Xmx1g', '-XX:-UsePerfData',
		(-r $archive
			? ("-XX:SharedArchiveFile=$archive", '-Xshare:auto', '-Xlog:disable')
			: ()),
		'-Dorg.slf4j.simpleLogger.defaultLogLevel=warn',
		'-Dorg.slf4j.simpleLogger.showDateTime=true',
		'-cp', "$self->{lib}/*", @args);
}

sub _format
{
	my ($self) = @_;
	my $log = $self->logfile;
	my $pid = spawn_guarded(
		{ stdout => $log, stderr => $log },
		$self->_java(
			'kafka.tools.StorageTool', 'format', '-t', $self->{cluster_id},
			'-c', "$self->{dir}/server.properties"));

	# Signal 0 only waits.
	croak "could not format Kafka's storage:\n" . $self->log_tail
	  if reap($pid, 0, 60) != 0;
	return;
}

sub logfile
{
	my ($self) = @_;
	return "$self->{dir}/kafka.log";
}

sub log_tail
{
	my ($self) = @_;
	my @lines = split /^/, PostgreSQL::Test::Utils::slurp_file($self->logfile);

	splice(@lines, 0, -40) if @lines > 40;
	return join('', @lines);
}

sub pid
{
	my ($self) = @_;
	return $self->{pid};
}

sub bootstrap_sasl
{
	my ($self) = @_;
	return "127.0.0.1:$self->{sasl_port}";
}

sub admin_bootstrap
{
	my ($self) = @_;
	return $self->{opts}{authorizer} ? $self->bootstrap_sasl : $self->bootstrap;
}

sub ktool_options
{
	my ($self) = @_;

	return () unless $self->{opts}{authorizer};
	return map { ('-X', $_) } (
		'security.protocol=sasl_plaintext', 'sasl.mechanism=PLAIN',
		'sasl.username=admin', 'sasl.password=admin-secret');
}

# start(wait => 0) returns at once; then wait_ready() later.
sub start
{
	my ($self, %opts) = @_;

	croak "Kafka runs already" if defined $self->{pid};
	$self->{pid} = spawn_guarded(
		{ stdout => $self->logfile, stderr => $self->logfile },
		$self->_java('kafka.Kafka', "$self->{dir}/server.properties"));
	$self->wait_ready if $opts{wait} // 1;
	return;
}

# Until our own node answers, and nobody else at its port.
sub wait_ready
{
	my ($self, $timeout) = @_;
	my $deadline = time() + ($timeout // 90);

	while (1)
	{
		my ($status, $id, $err) = $self->try_ktool('', 'wait-ready', 2);

		chomp $id;
		return if $status == 0 && $id eq $self->{cluster_id};
		croak "another Kafka ($id) answers at " . $self->bootstrap
		  if $status == 0 && $id ne '';

		my $state = process_state($self->{pid});
		croak "Kafka ended:\n" . $self->log_tail
		  if !defined $state || $state eq 'Z';
		croak "Kafka does not answer: $err\n" . $self->log_tail
		  if time() > $deadline;
	}
}

sub stop
{
	my ($self) = @_;

	return unless defined $self->{pid};
	$self->resume;
	reap($self->{pid}, 'TERM', 30);
	$self->{pid} = undef;
	return;
}

sub kill9
{
	my ($self) = @_;

	return unless defined $self->{pid};
	reap($self->{pid}, 'KILL');
	$self->{pid} = undef;
	return;
}

sub restart
{
	my ($self) = @_;

	$self->stop;
	$self->start;
	return;
}

sub pause
{
	my ($self) = @_;

	kill('STOP', $self->{pid});

	my $deadline = time() + 30;

	# A thread goes on until it is its turn to notice.
	while (grep { $_ ne 'T' } _thread_states($self->{pid}))
	{
		croak "Kafka did not stop" if time() > $deadline;
		sleep(0.001);
	}
	return;
}

sub _thread_states
{
	my ($pid) = @_;
	my @states;

	foreach my $file (glob("/proc/$pid/task/*/stat"))
	{
		open(my $stat, '<', $file) or next;
		push @states, $1 if (<$stat> // '') =~ /\) (\w) /;
	}
	return @states;
}

sub resume
{
	my ($self) = @_;

	kill('CONT', $self->{pid});
	return;
}

# acl_add($principal, allow|deny, $operation, topic|group|cluster, $name [, 'prefixed'])
sub acl_add
{
	my ($self, @rule) = @_;

	$self->ktool('acl-add', @rule);
	return;
}

# The same, with any|allow|deny; returns how many were removed.
sub acl_remove
{
	my ($self, @rule) = @_;
	my ($n) = $self->ktool('acl-remove', @rule) =~ /removed (\d+)/;

	return $n;
}

END
{
	if ($$ == $owner)
	{
		my $status = $?;

		foreach my $node (@nodes)
		{
			$node->kill9;
			rmtree($node->{dir}) unless defined $ENV{PG_TEST_NOCLEAN};
		}
		$? = $status;
	}
}

1;
