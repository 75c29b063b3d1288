
=pod

=head1 NAME

OutboxTest::Faults - programs that go on while everything they need dies

=head1 SYNOPSIS

  my $run = OutboxTest::Faults->new($node, $kafka, patience => 240);
  my %fault = $run->faults;
  $run->keep(pgbench => @pgbench);
  $run->go(\@names_of_faults, \%fault, 10_000, sub { how many there are });
  $run->end_clients;

=head1 DESCRIPTION

A program that is kept is started again whenever it has ended: pgbench ends when
the server does.  Its clients are to call themselves C<pgbench>.  A transaction
that they had prepared then is finished by somebody else.

=cut

package OutboxTest::Faults;

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Guard qw(spawn_guarded reap process_state);
use Test::More;
use Time::HiRes qw(sleep time);

# patience: seconds, for a slow machine
sub new
{
	my ($class, $node, $kafka, %opts) = @_;

	return bless {
		node => $node,
		kafka => $kafka,
		patience => $opts{patience} // 240,
		programs => {},            # name => { command, pid, starts }
		finish_at => 0,
		broker_starts_at => 0,     # 0: it runs
	}, $class;
}

# ---------- programs ----------

sub keep
{
	my ($self, $name, @command) = @_;

	$self->{programs}{$name} = { command => \@command, starts => 0 };
	return;
}

sub restarts
{
	my ($self, $name) = @_;
	return $self->{programs}{$name}{starts} - 1;
}

# It is no longer kept.
sub end_program
{
	my ($self, $name) = @_;
	my $program = $self->{programs}{$name};

	delete $program->{command};
	reap(delete $program->{pid}, 'TERM') if defined $program->{pid};
	return;
}

sub tend
{
	my ($self) = @_;

	foreach my $program (grep { defined $_->{command} } values %{ $self->{programs} })
	{
		my $state = defined $program->{pid} ? process_state($program->{pid}) : undef;

		next if defined $state && $state ne 'Z';
		reap($program->{pid}, 0) if defined $program->{pid};
		$program->{pid} = spawn_guarded({}, @{ $program->{command} });
		$program->{starts}++;
	}
	$self->start_broker
	  if $self->{broker_starts_at} != 0 && time() > $self->{broker_starts_at};
	$self->_finish_prepared if time() > $self->{finish_at};
	return;
}

sub _finish_prepared
{
	my ($self) = @_;

	foreach my $gid (split /\n/,
		$self->query("SELECT gid FROM pg_prepared_xacts WHERE prepared < now() - interval '2 s'"))
	{
		$self->query((rand() < 0.5 ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$gid'");
	}
	$self->{finish_at} = time() + 1;
	return;
}

# Poll as wait_until() does, with the programs running.
sub wait_busily
{
	my ($self, $what, $code) = @_;

	return wait_until(
		$what,
		sub {
			$self->tend;
			return $code->();
		},
		$self->{patience});
}

# '' if the server is down.  Then psql may end before it was told what to ask,
# for which IPC::Run dies.
sub query
{
	my ($self, $sql) = @_;
	my ($status, $out) = eval { $self->{node}->psql('postgres', $sql) };

	return defined $status && $status == 0 ? $out : '';
}

# ---------- faults ----------

# The pid of a process of the server; '' if there comes none.
sub backend_pid
{
	my ($self, $condition) = @_;
	my $pid = '';

	$self->wait_busily("a process with $condition",
		sub {
			$pid = $self->query("SELECT pid FROM pg_stat_activity WHERE $condition ORDER BY random() LIMIT 1");
		});
	return $pid;
}

sub kill9_backend
{
	my ($self, $condition) = @_;
	my $pid = $self->backend_pid($condition);

	kill('KILL', $pid) if $pid ne '';
	return;
}

sub kill9_bridges
{
	my ($self, $choice) = @_;
	my @pids;

	$self->wait_busily('a bridge', sub { @pids = bridge_pids($self->{node}); }) or return;
	@pids = ($pids[ rand @pids ]) if $choice eq 'one';
	kill('KILL', @pids);
	return;
}

# It is back from the last fault.
sub need_broker
{
	my ($self) = @_;

	$self->start_broker if $self->{broker_starts_at} != 0;
	$self->{kafka}->wait_ready;
	return;
}

# Kill or stop it; it starts again some time later.
sub end_broker
{
	my ($self, $how) = @_;

	$self->need_broker;
	$self->{kafka}->$how;
	$self->{broker_starts_at} = time() + rand(4);
	return;
}

sub start_broker
{
	my ($self) = @_;

	$self->{kafka}->start(wait => 0);
	$self->{broker_starts_at} = 0;
	return;
}

# name => code
sub faults
{
	my ($self) = @_;

	return (
		publisher => sub { $self->kill9_backend("backend_type LIKE 'outbox publisher%'") },
		consumer => sub { $self->kill9_backend("backend_type LIKE 'outbox consumer%'") },
		backend => sub { $self->kill9_backend("application_name = 'pgbench'") },
		server => sub { kill9_server($self->{node}); start_again($self->{node}) },
		bridge => sub { $self->kill9_bridges('one') },
		bridges => sub { $self->kill9_bridges('all') },
		broker_kill9 => sub { $self->end_broker('kill9') },
		broker_stop => sub { $self->end_broker('stop') });
}

# One fault after the other, spread over the time until $count->() says $wanted.
sub go
{
	my ($self, $plan, $fault, $wanted, $count) = @_;
	my $begun = time();

	foreach my $i (0 .. $#$plan)
	{
		my $goal = $wanted * ($i + 1) / (@$plan + 1);
		my $reached = 0;

		$self->wait_busily("$goal",
			sub { ($reached = $count->() || 0) >= $goal; }) or last;
		sleep(rand(0.05));    # anywhere in what goes on
		note(sprintf('%.1f s: %s, with %d', time() - $begun, $plan->[$i], $reached));
		$fault->{ $plan->[$i] }->();
	}
	$self->start_broker if $self->{broker_starts_at} != 0;
	$self->wait_busily($wanted, sub { ($count->() || 0) >= $wanted });
	return;
}

# Whatever the clients had begun has come to an end then.
sub end_clients
{
	my ($self) = @_;

	$self->end_program('pgbench');
	$self->{kafka}->wait_ready;
	$self->wait_busily('no client',
		sub { $self->query("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'") eq '0' });
	$self->wait_busily('no prepared transaction',
		sub { $self->query('SELECT count(*) FROM pg_prepared_xacts') eq '0' });
	return;
}

1;
