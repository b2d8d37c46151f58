from . import errors as errors
from . import hybrid as hybrid
from .bundle.opening import open_bundle as open_bundle
from .chat import Chat as Chat
from .engines.discovery import Device as Device
from .engines.discovery import devices as devices
from .errors import CloudError as CloudError
from .errors import DeadlineExceeded as DeadlineExceeded
from .errors import EdgeError as EdgeError
from .errors import RequestError as RequestError
from .hybrid.client import HybridClient as HybridClient
from .hybrid.cloud.endpoint import Cloud as Cloud
from .hybrid.privacy.policy import Policy as Policy
from .loading import load as load
from .loading import plan as plan
from .model import Model as Model
from .options import Options as Options
from .receipt import Receipt as Receipt
from .reply import AsyncReplyStream as AsyncReplyStream
from .reply import Reply as Reply
from .reply import ReplyStream as ReplyStream
from .store import Store as Store
from .system.plan import Plan as Plan
from .tools.calls import ToolCall as ToolCall
from .tools.tool_loop import ActResult as ActResult

__version__: str
